/* What a sweep adds up, for amplitude * exp(-rate * t) + offset: cost, gradient and the triangle of J^T J, in one loop.
   Compiled with -ffast-math, so that the sums and the exponential are vectorised. */
#include <math.h>

static inline __attribute__((always_inline)) void
add(const double *restrict t, const double *restrict y, const double *restrict weight, int weighted, long n,
    const double *theta, double *out)
{
    const double amplitude = theta[0], rate = theta[1], offset = theta[2];
    double cost = 0, g0 = 0, g1 = 0, g2 = 0, h00 = 0, h01 = 0, h02 = 0, h11 = 0, h12 = 0, h22 = 0;
    for (long i = 0; i < n; i++) {
        const double w2 = weighted ? weight[i] * weight[i] : 1.0;
        const double j0 = exp(-rate * t[i]), j1 = -amplitude * t[i] * j0;
        const double r = amplitude * j0 + offset - y[i];
        cost += w2 * r * r;
        g0 += w2 * j0 * r;
        g1 += w2 * j1 * r;
        g2 += w2 * r;
        h00 += w2 * j0 * j0;
        h01 += w2 * j0 * j1;
        h02 += w2 * j0;
        h11 += w2 * j1 * j1;
        h12 += w2 * j1;
        h22 += w2;
    }
    const double sums[] = {0.5 * cost, g0, g1, g2, h00, h01, h02, h11, h12, h22};
    for (int k = 0; k < 10; k++)
        out[k] = sums[k];
}

void plain(const double *t, const double *y, const double *weight, long n, const double *theta, double *out)
{
    add(t, y, weight, 0, n, theta, out);
}

void weighted(const double *t, const double *y, const double *weight, long n, const double *theta, double *out)
{
    add(t, y, weight, 1, n, theta, out);
}
