// HOG targets and the masked error.

// images (B, C, height, width) -> (B, rows * columns, C * bins): of each cell, the magnitudes by orientation, summed. One
// thread for one cell of one channel; the formulas and their order are those of hog.rs.
extern "C" __global__ void hog_sums(float *sums, const float *images, const float *edges, int n, int height, int width,
                                    int cell, int bins, int channels) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int columns = width / cell, rows = height / cell;
    int column = i % columns, row = i / columns % rows, channel = i / columns / rows % channels;
    int image = i / columns / rows / channels;
    const float *plane = images + ((size_t)image * channels + channel) * height * width;
    float *histogram = sums + ((((size_t)image * rows + row) * columns + column) * channels + channel) * bins;
    for (int k = 0; k < bins; k++) histogram[k] = 0.f;
    for (int y = row * cell; y < (row + 1) * cell; y++) {
        const float *a = plane + (y == 0 ? 1 : y - 1) * width, *b = plane + y * width;
        const float *c = plane + (y + 1 == height ? height - 2 : y + 1) * width;
        for (int x = column * cell; x < (column + 1) * cell; x++) {
            int l = x == 0 ? 1 : x - 1, r = x + 1 == width ? width - 2 : x + 1;
            float gx = a[l] - a[r] + 2.f * b[l] - 2.f * b[r] + c[l] - c[r];
            float gy = a[l] + 2.f * a[x] + a[r] - c[l] - 2.f * c[x] - c[r];
            float magnitude = sqrtf(gx * gx + gy * gy), near = __int_as_float(0x7f800000);
            int bin = -1;
            for (int k = 0; k < bins; k++) {
                float cross = gx * edges[2 * k] - gy * edges[2 * k + 1];
                if (gx < 0.f) cross = -cross;
                bin += cross >= 0.f;
                near = fminf(near, fabsf(cross));
            }
            if (near <= 2e-6f * magnitude || isnan(magnitude)) {
                float phase = (float)atan2((double)gx, (double)gy);
                bin = (int)floorf(phase / 3.14159274f * bins) % bins;
                if (bin < 0) bin += bins;
            }
            histogram[bin] += magnitude;
        }
    }
}

// sums of cells -> targets of cells `factor` times as wide, each histogram divided by its length. One thread for one
// histogram.
extern "C" __global__ void hog_cells(float *out, const float *sums, int n, int rows, int columns, int factor, int bins,
                                     int channels, float scale) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int wide = columns / factor, high = rows / factor;
    int channel = i % channels, cell = i / channels;
    int column = cell % wide, row = cell / wide % high, image = cell / wide / high;
    out += (size_t)i * bins;
    float squares = 0.f;
    for (int k = 0; k < bins; k++) {
        float sum = 0.f;
        for (int y = row * factor; y < (row + 1) * factor; y++)
            for (int x = column * factor; x < (column + 1) * factor; x++)
                sum += sums[((((size_t)image * rows + y) * columns + x) * channels + channel) * bins + k];
        sum *= scale;
        squares += sum * sum;
        out[k] = sum;
    }
    float inverse = 1.f / fmaxf(sqrtf(squares), 1e-12f);
    for (int k = 0; k < bins; k++) out[k] *= inverse;
}

// Sum over the block's 256 threads, for thread 0.
__device__ float block_sum(float x) {
    __shared__ float sums[256];
    __syncthreads();
    sums[threadIdx.x] = x;
    for (int half = 128; half > 0; half >>= 1) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    return sums[0];
}

// (gridDim.x, 2): parts of sum(mask * (pred - target)^2) and of channels * sum(mask).
extern "C" __global__ void masked_parts(float *out, const float *pred, const float *target, const float *mask, int n,
                                        int channels) {
    float error = 0.f, weight = 0.f;
    // Unsigned, or the last step past n could wrap.
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        float m = mask[i / channels], d = pred[i] - target[i];
        error += m * d * d;
        weight += m;
    }
    error = block_sum(error);
    weight = block_sum(weight);
    if (threadIdx.x == 0) {
        out[2 * blockIdx.x] = error;
        out[2 * blockIdx.x + 1] = weight;
    }
}

// (2): the quotient of the two sums, and the divisor. One block.
extern "C" __global__ void masked_quotient(float *out, const float *parts, int n) {
    float error = 0.f, weight = 0.f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        error += parts[2 * i];
        weight += parts[2 * i + 1];
    }
    error = block_sum(error);
    weight = block_sum(weight);
    if (threadIdx.x == 0) {
        out[0] = error / weight;
        out[1] = weight;
    }
}

// mask is times 2 * gradient / divisor already.
extern "C" __global__ void masked_backward(float *d, const float *pred, const float *target, const float *mask, int n,
                                           int channels) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) d[i] = mask[i / channels] * (pred[i] - target[i]);
}
