// Products of matrices, divided among threads by the rows of the largest of the three matrices.
//
// A thread then meets the same rows of a weight matrix in every product, in its gradient and in its
// update, and finds them in the caches of its own core. Libraries divide each product by itself.

#pragma once

#include <immintrin.h>
#include <omp.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace at::native::cpublas {
// torch's own, for one thread: out = a b, or out + a b, of matrices that lie by rows.
void brgemm(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add,
            const float* a, const float* b, float* out, bool is_vnni);
}  // namespace at::native::cpublas

// What calls these functions is compiled with few optimizations, since it only calls.
#pragma GCC push_options
#pragma GCC optimize("O3")

namespace ppl_vi {

struct Matrix {
    float* data;
    int64_t rows, columns, down, right;  // the last two are strides

    // Whether its rows lie one after the other, rather than its columns.
    bool by_rows() const { return right == 1; }

    // The same numbers with rows for columns.
    Matrix turned() const { return {data, columns, rows, right, down}; }

    Matrix part(int64_t row, int64_t num_rows, int64_t column, int64_t num_columns) const {
        return {data + row * down + column * right, num_rows, num_columns, down, right};
    }
};

inline Matrix matrix_of(AtenTensorHandle tensor) {
    void* data;
    int64_t sizes[2], strides[2];
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &data));
    for (int dim = 0; dim < 2; ++dim) {
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_size(tensor, dim, &sizes[dim]));
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_stride(tensor, dim, &strides[dim]));
    }
    return {static_cast<float*>(data), sizes[0], sizes[1], strides[0], strides[1]};
}

constexpr int64_t most_terms = 512, most_kept = 131072;  // numbers, well within a core's own cache

constexpr int64_t lanes = 16;  // numbers of a vector

// Up to sixteen rows of up to sixteen numbers, from as many columns.
inline void turn(const float* columns, int64_t right, int64_t num_columns, float* rows,
                 int64_t down, int64_t num_rows) {
    const __mmask16 in_column = (1u << num_rows) - 1, in_row = (1u << num_columns) - 1;
    __m512 a[lanes], b[lanes];
    for (int i = 0; i < lanes; ++i) {
        a[i] = i < num_columns ? _mm512_maskz_loadu_ps(in_column, columns + i * right)
                               : _mm512_setzero_ps();
    }
    for (int i = 0; i < lanes; i += 2) {  // pairs of numbers that belong together
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < lanes; i += 4) {  // then fours, in a[i + row % 4]
        for (int j = 0; j < 2; ++j) {
            const __m512d one = _mm512_castps_pd(b[i + j]), other = _mm512_castps_pd(b[i + j + 2]);
            a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(one, other));
            a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(one, other));
        }
    }
    constexpr int even = 0x88, odd = 0xdd;  // two of the four fours in a vector
    for (int i = 0; i < 4; ++i) {
        const __m512 even_first = _mm512_shuffle_f32x4(a[i], a[i + 4], even);
        const __m512 even_last = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], even);
        const __m512 odd_first = _mm512_shuffle_f32x4(a[i], a[i + 4], odd);
        const __m512 odd_last = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], odd);
        b[i] = _mm512_shuffle_f32x4(even_first, even_last, even);
        b[i + 4] = _mm512_shuffle_f32x4(odd_first, odd_last, even);
        b[i + 8] = _mm512_shuffle_f32x4(even_first, even_last, odd);
        b[i + 12] = _mm512_shuffle_f32x4(odd_first, odd_last, odd);
    }
    for (int i = 0; i < lanes; ++i) {
        if (i < num_rows) {
            _mm512_mask_storeu_ps(rows + i * down, in_row, b[i]);
        }
    }
}

// The same matrix, by rows.
inline Matrix laid_by_rows(const Matrix& matrix, std::vector<float>& kept) {
    if (matrix.by_rows()) {
        return matrix;
    }
    const int64_t rows = matrix.rows, columns = matrix.columns;
    kept.resize(std::max<size_t>(kept.size(), rows * columns));
    float* const out = kept.data();
    for (int64_t column = 0; column < columns; column += lanes) {
        for (int64_t row = 0; row < rows; row += lanes) {
            turn(matrix.data + column * matrix.right + row, matrix.right,
                 std::min(lanes, columns - column), out + row * columns + column, columns,
                 std::min(lanes, rows - row));
        }
    }
    return {out, rows, columns, columns, 1};
}

// How long each part is where a length is divided into equal ones of at most so many.
inline int64_t part_of(int64_t length, int64_t most) {
    const int64_t parts = (length + most - 1) / most;
    return parts == 0 ? 1 : ((length + parts - 1) / parts + lanes - 1) / lanes * lanes;
}

// One thread's product, in parts that its core can keep.
inline void product(const Matrix& out, const Matrix& first, const Matrix& second) {
    if (out.rows == 0 || out.columns == 0) {  // a thread without rows or columns
        return;
    }
    thread_local std::vector<float> kept_a, kept_b;
    const Matrix a = laid_by_rows(first, kept_a), b = laid_by_rows(second, kept_b);
    const int64_t a_down = a.rows == 1 ? a.columns : a.down;  // of one row it may be anything
    const int64_t out_down = out.rows == 1 ? out.columns : out.down;
    const int64_t terms = part_of(a.columns, most_terms);
    const int64_t width = part_of(b.columns, most_kept / std::min(terms, most_terms));
    if (a.columns == 0) {  // a thread without terms
        for (int64_t row = 0; row < out.rows; ++row) {
            std::fill_n(out.data + row * out.down, out.columns, 0.0f);
        }
    }
    for (int64_t k = 0; k < a.columns; k += terms) {
        const int64_t num_terms = std::min(terms, a.columns - k);
        for (int64_t n = 0; n < b.columns; n += width) {
            at::native::cpublas::brgemm(
                out.rows, std::min(width, b.columns - n), num_terms, a_down, b.down, out_down,
                k > 0, a.data + k, b.data + k * b.down + n, out.data + n, false);
        }
    }
}

enum class Along { rows, columns, terms };

inline Along direction(const Matrix& out, const Matrix& a, const Matrix& b, int threads) {
    const int64_t in_out = out.rows * out.columns;
    const int64_t in_a = a.rows * a.columns, in_b = b.rows * b.columns;
    const bool few = in_out * threads <= (in_a > in_b ? in_a : in_b);  // sums of terms are cheap
    if (in_b > in_a && in_b > in_out) {
        return b.by_rows() && few ? Along::terms : Along::columns;
    }
    if (in_a > in_out) {
        return !a.by_rows() && few ? Along::terms : Along::rows;
    }
    return Along::rows;
}

// Whether torch could compute it.
inline bool divided_product(const Matrix& out, const Matrix& a, const Matrix& b) {
    if (b.columns == 1 && a.rows > 1) {
        return divided_product(out.turned(), b.turned(), a.turned());
    }
    const int threads = omp_get_max_threads();
    const Along along = direction(out, a, b, threads);
    const int64_t size = out.rows * out.columns;
    thread_local std::vector<float> kept;
    if (along == Along::terms && kept.size() < static_cast<size_t>(size * (threads - 1))) {
        kept.resize(size * (threads - 1));
    }
    float* const sums = kept.data();
    std::atomic<bool> done{true};
    const auto multiply = [&done](const Matrix& out, const Matrix& a, const Matrix& b) {
        try {
            product(out, a, b);
        } catch (...) {  // nothing may leave a thread
            done = false;
        }
    };
#pragma omp parallel num_threads(threads)
    {
        const int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();
        const auto start = [&](int64_t length) { return length * thread / team; };
        const auto count = [&](int64_t length) {
            return length * (thread + 1) / team - length * thread / team;
        };
        if (along == Along::rows) {
            const int64_t first = start(out.rows), own = count(out.rows);
            multiply(out.part(first, own, 0, out.columns), a.part(first, own, 0, a.columns), b);
        } else if (along == Along::columns) {
            const int64_t first = start(out.columns), own = count(out.columns);
            multiply(out.part(0, out.rows, first, own), a, b.part(0, b.rows, first, own));
        } else {
            const int64_t first = start(a.columns), own = count(a.columns);
            Matrix sum = out;
            if (thread > 0) {
                sum.data = sums + (thread - 1) * size;
                sum.down = out.columns;
            }
            multiply(sum, a.part(0, a.rows, first, own), b.part(first, own, 0, b.columns));
#pragma omp barrier
            float* const whole = out.data;
            const int64_t from = start(size), to = from + count(size);
            for (int64_t other = 0; other + 1 < team; ++other) {
                const float* const part = sums + other * size;
#pragma omp simd
                for (int64_t i = from; i < to; ++i) {
                    whole[i] += part[i];
                }
            }
        }
    }
    return done;
}

}  // namespace ppl_vi

#pragma GCC pop_options

inline AOTITorchError aoti_torch_cpu_divided_product_out(
    AtenTensorHandle out, AtenTensorHandle a, AtenTensorHandle b) {
    using ppl_vi::matrix_of;
    return ppl_vi::divided_product(matrix_of(out), matrix_of(a), matrix_of(b))
               ? AOTI_TORCH_SUCCESS
               : AOTI_TORCH_FAILURE;
}
