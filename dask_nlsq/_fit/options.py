"""FitOptions: the arguments of a fit, checked once, and which of them a checkpoint has to agree on."""

from __future__ import annotations

import dataclasses
import hashlib
import operator
import pickle
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, TypeAlias

import dask
from dask.utils import parse_bytes
from scipy.optimize import OptimizeResult

from dask_nlsq._errors import DataError, NlsqError, one_of
from dask_nlsq._model import COUNTS, Loss, check_loss
from dask_nlsq._plan import SETTINGS, OptimizationGoal, WorkflowConfig, merge_config, whole

Form: TypeAlias = "Callable[[FitOptions], Any]"


def _ordered(value: Any) -> Any:
    """Return filters with sets and arrays as lists, which are written out, in an order that is that of no process."""
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if hasattr(value, "tolist"):
        return value.tolist()
    # Of these two types only: a subclass, such as a named tuple, may be made of other arguments.
    return type(value)(map(_ordered, value)) if type(value) in (list, tuple) else value


def _text(filters: object) -> str | None:
    """Return filters as text; what an expression of pyarrow abbreviates, a hash tells apart."""
    if filters is None:
        return None
    text = str(_ordered(filters))
    return f"{text} {hashlib.sha256(pickle.dumps(filters)).hexdigest()[:16]}" if "..." in text else text


def _name(method: object) -> str | None:
    """Return what a method is called."""
    return method if isinstance(method, (str, type(None))) else type(method).__name__


def _form(form: Form) -> dict[str, Form]:
    """Return metadata of a field on which the answer depends; `form` is what of it a fingerprint holds."""
    return {"fingerprint": form}


def _value(name: str) -> dict[str, Form]:
    """Return metadata of a field on whose value the answer depends."""
    return _form(operator.attrgetter(name))


def _layout(form: Form) -> dict[str, Form]:
    """Return metadata of a field that says how rows are laid out; `form` is one text or number for all that it means.

    The minimum is the same. The way there is not, and with it the last bits, the plan, and what is tested on a sample.
    """
    return {"layout": form}


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """The arguments of `fit` under their names; `settings` are those that a `WorkflowConfig` may hold, merged.

    Raises
    ------
    NlsqError
        An argument is none of those that are possible; the message names it.
    """

    model: Any
    x: Any = None
    y: Any = None
    data: Any = None
    sigma: Any = None
    sigma_x: Any = None
    estimate_sigma: bool = False
    filters: Any = field(default=None, metadata=_form(lambda o: _text(o.filters)))
    storage_options: dict[str, Any] | None = None
    version: Any = None
    p0: Any = None
    bounds: Any = None
    fixed: Any = None
    tied: Mapping[str, Any] | None = None
    shared: Any = None
    prior: Mapping[str, tuple[float, float]] | None = None
    loss: Loss = "linear"
    f_scale: float = 1.0
    trials: Any = None
    scale: str | None = field(default=None, metadata=_value("scale"))
    jac: Any = None
    absolute_sigma: bool = field(default=False, metadata=_value("absolute_sigma"))
    cov_type: str = field(default="standard", metadata=_value("cov_type"))
    groups: Any = None
    correlation: Any = field(default=None, metadata=_form(lambda o: getattr(o.correlation, "identity", None)))
    nan_policy: str = "raise"
    missing_chunks: str = "fill"
    ftol: float | None = field(default=None, metadata=_value("ftol"))
    xtol: float | None = field(default=None, metadata=_value("xtol"))
    gtol: float | None = field(default=None, metadata=_value("gtol"))
    max_nfev: int | None = None
    time_limit: float | None = None
    callback: Callable[[OptimizeResult], Any] | None = None
    tier: Any = field(default=None, metadata=_layout(lambda o: str(o.tier or "auto").lower()))
    goal: Any = field(default=None, metadata=_form(lambda o: str(o.goal or OptimizationGoal.ROBUST)))
    workflow: str | None = None
    config: Any = None
    memory_limit: int | str | None = field(
        default=None, metadata=_layout(lambda o: None if o.memory_limit is None else parse_bytes(o.memory_limit))
    )
    cache: str | None = field(default=None, metadata=_layout(lambda o: o.cache or "auto"))
    precision: float | Mapping[str, float] | None = field(default=None, metadata=_value("precision"))
    n_starts: int | None = field(default=None, metadata=_form(lambda o: o.settings.starts if o.searches else None))
    sampler: str | None = field(default=None, metadata=_form(lambda o: o.sampler if o.searches else None))
    method: Any = field(default=None, metadata=_form(lambda o: _name(o.method)))
    ordered: bool = field(default=True, metadata=_value("ordered"))
    seed: int = field(default=0, metadata=_value("seed"))
    checkpoint: Any = None
    checkpoint_interval: float | None = None
    checkpoint_every: int | None = None
    resume: bool | str = "auto"
    compression: str | None = None
    keep: int | None = None
    strict: bool = False
    cache_dir: Any = None
    autotune: bool = field(default=False, metadata=_layout(lambda o: bool(o.autotune)))
    client: Any = None
    progress: bool | None = None
    settings: WorkflowConfig = field(init=False)
    configured: dataclasses.InitVar[bool] = True  # whether Dask's configuration counts

    def __post_init__(self, configured: bool) -> None:
        object.__setattr__(self, "seed", whole("seed", self.seed, 0))
        given = WorkflowConfig(**{name: getattr(self, name) for name in SETTINGS})
        object.__setattr__(self, "settings", merge_config(given, self.config, self.workflow, configured))
        for name in SETTINGS:
            object.__setattr__(self, name, getattr(self.settings, name))
        if configured and self.cache_dir is None and self.checkpoint is None:
            object.__setattr__(self, "cache_dir", dask.config.get("nlsq.cache-dir", None))
        one_of("nan_policy", self.nan_policy, "raise", "omit", error=DataError)
        one_of("missing_chunks", self.missing_chunks, "fill", "raise", error=DataError)
        one_of("cov_type", self.cov_type, "standard", "sandwich", "cluster")
        self._check_groups()
        check_loss(self.loss, self.f_scale)
        self._check_counts()
        self._check_errors_in_x()
        if not isinstance(self.resume, bool):
            one_of("resume", self.resume, "auto", "force")

    def _check_groups(self) -> None:
        """Refuse groups without what has them, and the other way round."""
        if self.cov_type == "cluster" and self.groups is None:
            raise NlsqError('cov_type="cluster" needs groups=, a column or an array: the group of each row.')
        if self.cov_type != "cluster" and self.groups is not None and self.correlation is None:
            raise NlsqError(f'groups= is for cov_type="cluster" and for correlation=; cov_type is {self.cov_type!r}.')

    def _check_counts(self) -> None:
        """Refuse what does not belong to the loss: trials, sigma or a scale."""
        counts = self.loss in COUNTS
        if self.scale is not None:
            if self.scale != "pearson":
                raise NlsqError(f'scale is {self.scale!r}; "pearson" or None is needed.')
            if not counts:
                raise NlsqError(
                    f"scale={self.scale!r} is for counts, loss='poisson' and its like; the covariance of other fits "
                    "is scaled by the reduced chi-square unless absolute_sigma=True."
                )
        if (self.trials is not None) != (self.loss == "binomial"):
            raise NlsqError(
                'loss="binomial" needs trials=, a number or a column: of how many trials y counts the successes.'
                if self.loss == "binomial"
                else f'trials= is for loss="binomial"; the loss is {self.loss!r}.'
            )
        if counts and self.f_scale != 1.0:
            raise NlsqError(f"f_scale={self.f_scale!r} is for robust losses; loss={self.loss!r} has no such scale.")
        if self.scale is not None and self.cov_type != "standard":
            raise NlsqError(
                f"scale={self.scale!r} scales the covariance of cov_type='standard'; {self.cov_type!r} has no scale."
            )
        if self.scale is not None and self.absolute_sigma:
            raise NlsqError(f"scale={self.scale!r} scales the covariance, and absolute_sigma=True leaves it; give one.")
        if counts and self.sigma is not None:
            raise NlsqError(f"sigma= is given, and the variance of counts follows from the model (loss={self.loss!r}).")

    def _check_errors_in_x(self) -> None:
        """Refuse errors in x where they do not go with the rest."""
        if self.sigma_x is None:
            return
        if self.loss in COUNTS:
            raise NlsqError(f"sigma_x= is given, and counts (loss={self.loss!r}) have no errors in x here.")
        if self.sigma is None:
            raise NlsqError(
                "sigma_x= needs sigma= beside it: how far rows are moved along x depends on the error of y too."
            )
        if self.searches:
            raise NlsqError("sigma_x= goes with one start; search with n_starts= without it, and go on from p0=result.")

    @property
    def residual_variance(self) -> bool:
        """Whether the residual variance is estimated; else it is that of sigma, or of counts."""
        return self.scale is not None if self.loss in COUNTS else not self.absolute_sigma

    @property
    def searches(self) -> bool:
        """Whether the fit begins from several starts."""
        return self.settings.starts > 1

    def fingerprint(self) -> dict[str, Any]:
        """Return what of the options decides about the answer."""
        return self._forms("fingerprint")

    def layout(self) -> dict[str, Any]:
        """Return what arguments, config, workflow and Dask's configuration say of how rows are laid out.

        A checkpoint need not agree on it: a fit may go on in another tier, or with less memory.
        """
        return self._forms("layout")

    def _forms(self, kind: str) -> dict[str, Any]:
        forms = {each.name: each.metadata.get(kind) for each in dataclasses.fields(self)}
        return {name: form(self) for name, form in forms.items() if form is not None}
