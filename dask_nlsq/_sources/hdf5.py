"""HDF5: datasets and variables that h5py, h5netcdf and netCDF4 have opened, read slice by slice."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from dask_nlsq._errors import DataError, NlsqError
from dask_nlsq._sources.cf import decoder
from dask_nlsq._sources.stored import Stored
from dask_nlsq._typing import AnyArray, Index

if TYPE_CHECKING:
    import h5py

LIBRARIES = ("h5py", "h5netcdf", "netCDF4")


class OpenArray(Protocol):
    """An array in an open file, as h5py, h5netcdf and netCDF4 have it in common."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> Any:
        """The type of its values; netCDF4 has Python's ``str`` among them."""

    def __getitem__(self, index: Index) -> AnyArray:
        """Read a part."""


def is_hdf5(data: object) -> TypeGuard[OpenArray]:
    """Whether this is an array in an open file of HDF5 or netCDF."""
    return library(data) in LIBRARIES and type(data).__name__ in ("Dataset", "Variable")


def library(data: object) -> str:
    """Return the package that the type of an object is from."""
    return type(data).__module__.partition(".")[0]


def as_stored(name: str, data: OpenArray) -> Stored:
    """Return such an array as a column; one of h5py travels to other processes, which open its file."""
    try:
        return _stored(name, data)
    except (ValueError, RuntimeError) as error:  # of h5py and netCDF4
        if isinstance(error, NlsqError):
            raise
        raise DataError(f"The file of the array is closed: {error}.", column=name) from error


def _stored(name: str, data: OpenArray) -> Stored:
    opened: Any = data  # of which each library has more
    netcdf4 = hasattr(data, "ncattrs")
    attrs = {key: opened.getncattr(key) for key in opened.ncattrs()} if netcdf4 else dict(opened.attrs)
    decodes = library(data) == "netCDF4" and getattr(data, "scale", False)  # itself, and masks too
    array: Any = Variable(name, data, attrs)
    if library(data) == "h5py":
        about = {"shape": data.shape, "dtype": data.dtype, "chunks": opened.chunks, "attrs": attrs}
        array = Dataset(opened.file.filename, opened.name, about, opened)
    return Stored(name, array, None if decodes else decoder(name, attrs, data.dtype))


class Dataset:
    """A dataset of h5py, by its file and name; another process opens the file at its first read."""

    def __init__(self, filename: str, name: str, about: dict[str, Any], opened: h5py.Dataset | None = None) -> None:
        self.filename, self.name, self._about, self._open = filename, name, about, opened
        self.shape, self.dtype, self.chunks, self.attrs = (about[k] for k in ("shape", "dtype", "chunks", "attrs"))
        self.ndim, self.nbytes = len(self.shape), self.dtype.itemsize * math.prod(self.shape)
        self.place = f"{filename}:{name}"

    def __getitem__(self, index: Index) -> AnyArray:
        if self._open is None:
            self._open = self._opened()
        values: AnyArray = self._open[index]
        return values

    def _opened(self) -> Any:
        import h5py

        try:
            return h5py.File(self.filename, "r")[self.name]
        except (OSError, KeyError) as error:
            raise DataError(
                f"The dataset {self.name!r} of {self.filename!r} cannot be opened in this process: {error}. Put the "
                "file where every worker sees it, and close it where it is written."
            ) from error

    def __reduce__(self) -> Any:
        # h5py refuses to pickle its handles.
        return Dataset, (self.filename, self.name, self._about)


class Variable:
    """A variable of h5netcdf or netCDF4, which this process alone can read."""

    def __init__(self, name: str, data: OpenArray, attrs: dict[str, Any]) -> None:
        self.name, self._data, self.attrs = name, data, attrs
        self.shape, self.dtype = tuple(data.shape), data.dtype
        chunks = getattr(data, "chunks", None)
        self.chunks = chunks if isinstance(chunks, tuple) else None
        self.ndim, self.nbytes = len(self.shape), self.dtype.itemsize * math.prod(self.shape)
        self.place = str(id(data))

    def __getitem__(self, index: Index) -> AnyArray:
        values: AnyArray = self._data[index]
        return values

    def __reduce__(self) -> Any:
        raise DataError(
            f"It is a variable of {library(self._data)}, which no other process can read. Give "
            "data=xarray.open_dataset(path, chunks={}), which each worker opens for itself.",
            column=self.name,
        )
