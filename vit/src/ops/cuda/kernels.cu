// Kernels for f32 rows. Unless said otherwise one warp handles one row, so that no sum needs shared memory, and threads are
// (32, rows of a block).

__device__ float warp_sum(float x) {
    for (int mask = 16; mask > 0; mask >>= 1) x += __shfl_xor_sync(0xffffffffu, x, mask);
    return x;
}

__device__ float warp_max(float x) {
    for (int mask = 16; mask > 0; mask >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, mask));
    return x;
}

// Mean and 1 / sqrt(variance + eps) of a row.
__device__ float2 moments(const float *x, int width, float eps) {
    float sum = 0.f, squares = 0.f;
    for (int c = threadIdx.x; c < width; c += 32) sum += x[c];
    float mean = warp_sum(sum) / width;
    for (int c = threadIdx.x; c < width; c += 32) squares += (x[c] - mean) * (x[c] - mean);
    return make_float2(mean, 1.f / sqrtf(warp_sum(squares) / width + eps));
}

extern "C" __global__ void layer_norm(float *y, const float *x, const float *w, const float *b, int rows, int width,
                                      float eps) {
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    x += (size_t)row * width;
    y += (size_t)row * width;
    float2 m = moments(x, width, eps);
    for (int c = threadIdx.x; c < width; c += 32) y[c] = (x[c] - m.x) * m.y * w[c] + b[c];
}

// out: dx (rows, width); then of each block, which handles `chunk` rows, its part of dw and db (2, width).
extern "C" __global__ void layer_norm_backward(float *out, const float *x, const float *w, const float *g, int rows,
                                               int width, int chunk, float eps) {
    extern __shared__ float sums[]; // of each warp: dw, db
    float *dw = sums + threadIdx.y * 2 * width, *db = dw + width;
    for (int c = threadIdx.x; c < width; c += 32) dw[c] = db[c] = 0.f;
    int end = min(rows, (blockIdx.x + 1) * chunk);
    for (int row = blockIdx.x * chunk + threadIdx.y; row < end; row += blockDim.y) {
        const float *xr = x + (size_t)row * width, *gr = g + (size_t)row * width;
        float *dx = out + (size_t)row * width;
        float2 m = moments(xr, width, eps);
        float s = 0.f, t = 0.f;
        for (int c = threadIdx.x; c < width; c += 32) {
            float n = (xr[c] - m.x) * m.y, gw = gr[c] * w[c];
            s += gw;
            t += gw * n;
            dw[c] += gr[c] * n;
            db[c] += gr[c];
        }
        s = warp_sum(s) / width;
        t = warp_sum(t) / width;
        for (int c = threadIdx.x; c < width; c += 32) dx[c] = m.y * (gr[c] * w[c] - s - (xr[c] - m.x) * m.y * t);
    }
    __syncthreads();
    float *part = out + (size_t)rows * width + (size_t)blockIdx.x * 2 * width;
    for (int c = threadIdx.y * 32 + threadIdx.x; c < 2 * width; c += 32 * blockDim.y) {
        float sum = 0.f;
        for (int warp = 0; warp < blockDim.y; warp++) sum += sums[warp * 2 * width + c];
        part[c] = sum;
    }
}

// (rows, width) -> (gridDim.y, width): sums over `chunk` rows each. Threads are (32 columns, 8).
extern "C" __global__ void column_sums(float *out, const float *x, int rows, int width, int chunk) {
    __shared__ float sums[8][32];
    int c = blockIdx.x * 32 + threadIdx.x, end = min(rows, (blockIdx.y + 1) * chunk);
    float sum = 0.f;
    if (c < width)
        for (int row = blockIdx.y * chunk + threadIdx.y; row < end; row += 8) sum += x[(size_t)row * width + c];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && c < width) {
        for (int i = 1; i < 8; i++) sum += sums[i][threadIdx.x];
        out[(size_t)blockIdx.y * width + c] = sum;
    }
}

// softmax(scale * x)
extern "C" __global__ void softmax(float *p, const float *x, int rows, int width, float scale) {
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    x += (size_t)row * width;
    p += (size_t)row * width;
    float max = -__int_as_float(0x7f800000), sum = 0.f;
    for (int c = threadIdx.x; c < width; c += 32) max = fmaxf(max, x[c] * scale);
    max = warp_max(max);
    for (int c = threadIdx.x; c < width; c += 32) {
        float e = expf(x[c] * scale - max);
        p[c] = e;
        sum += e;
    }
    float inverse = 1.f / warp_sum(sum);
    for (int c = threadIdx.x; c < width; c += 32) p[c] *= inverse;
}

extern "C" __global__ void softmax_backward(float *dx, const float *p, const float *g, int rows, int width, float scale) {
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    size_t at = (size_t)row * width;
    float sum = 0.f;
    for (int c = threadIdx.x; c < width; c += 32) sum += p[at + c] * g[at + c];
    sum = warp_sum(sum);
    for (int c = threadIdx.x; c < width; c += 32) dx[at + c] = scale * p[at + c] * (g[at + c] - sum);
}

// The rest: one thread for one element.

extern "C" __global__ void add_bias(float *y, const float *b, int n, int width) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += b[i % width];
}

extern "C" __global__ void gelu(float *y, const float *x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = 0.5f * x[i] * (1.f + erff(x[i] * 0.70710678118654752f));
}

extern "C" __global__ void gelu_backward(float *dx, const float *x, const float *g, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i], density = 0.39894228040143268f * expf(-0.5f * v * v);
    dx[i] = g[i] * (0.5f * (1.f + erff(v * 0.70710678118654752f)) + v * density);
}

// (batch, tokens, parts, heads, dim) -> (parts, batch, heads, tokens, dim)
extern "C" __global__ void split_heads(float *y, const float *x, int n, int parts, int batch, int tokens, int heads,
                                       int dim) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int e = i % dim, t = i / dim % tokens, h = i / dim / tokens % heads, rest = i / dim / tokens / heads;
    int b = rest % batch, part = rest / batch;
    y[i] = x[((((size_t)b * tokens + t) * parts + part) * heads + h) * dim + e];
}

// The way back, from up to three parts (batch, heads, tokens, dim).
extern "C" __global__ void merge_heads(float *y, const float *a, const float *b, const float *c, int n, int parts,
                                       int tokens, int heads, int dim) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int e = i % dim, h = i / dim % heads, part = i / dim / heads % parts, rest = i / dim / heads / parts;
    int t = rest % tokens, image = rest / tokens;
    const float *from = part == 0 ? a : part == 1 ? b : c;
    y[i] = from[(((size_t)image * heads + h) * tokens + t) * dim + e];
}
