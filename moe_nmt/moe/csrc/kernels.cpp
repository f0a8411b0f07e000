// Feed-forward experts on a CPU, in float32: y = activation(x W1 + b1) W2 + b2, each row by the expert that it belongs to.
//
// Every thread computes whole experts, or blocks of their rows or of their inner width, so that threads never wait for
// one another within a matrix product, a block of inner activations is used while it is in the cache, and every weight
// and every gradient passes through memory once. The products themselves are oneDNN's micro-kernels (`brgemm`), which
// need no packed copy of the weights.
//
// Shape letters: A rows grouped by expert, E experts, D model width, F inner width.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <torch/library.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU
#endif

namespace {

using at::Tensor;

constexpr int64_t kForwardRows = 128;   // rows of a block in the forward pass
constexpr int64_t kBackwardRows = 512;  // rows of a block in the backward pass
constexpr int64_t kInner = 256;         // columns of F in a block
constexpr int64_t kDepth = 128;         // inner dimension of one call of the micro-kernel
constexpr int64_t kTileRows = 64;       // rows of one call of the micro-kernel
constexpr int64_t kRowMultiple = 4;     // blocks are padded to so many rows, to bound the number of micro-kernels
constexpr int64_t kColumnMultiple = 16;
constexpr int64_t kWeightsInRows = 64;  // reading the weights takes about as long as computing so many rows

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// C (+)= A B for row-major A [m, k], B [k, n], C [m, n] with the given distances between rows.
void multiply(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
              int64_t ldc, bool add) {
  for (int64_t j = 0; j < n; j += kInner) {
    for (int64_t l = 0; l < k; l += kDepth) {
      for (int64_t i = 0; i < m; i += kTileRows) {
        at::native::cpublas::brgemm(std::min(kTileRows, m - i), std::min(kInner, n - j), std::min(kDepth, k - l), lda,
                                    ldb, ldc, add || l > 0, a + i * lda + l, b + l * ldb + j, c + i * ldc + j);
      }
    }
  }
}

// target [columns, ld] = transpose of source [rows, columns]; target columns from `rows` up to `padded` are set to zero.
FOR_EACH_CPU void transpose(const float* source, int64_t source_ld, int64_t rows, int64_t columns, float* target,
                            int64_t target_ld, int64_t padded) {
  constexpr int64_t block = 16;
  for (int64_t r0 = 0; r0 < rows; r0 += block) {
    const int64_t r1 = std::min(rows, r0 + block);
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t r = r0; r < r1; ++r) target[c * target_ld + r] = source[r * source_ld + c];
    }
  }
  if (padded > rows) {
    for (int64_t c = 0; c < columns; ++c) std::fill_n(target + c * target_ld + rows, padded - rows, 0.0f);
  }
}

FOR_EACH_CPU void add_bias(float* rows, int64_t count, int64_t columns, int64_t ld, const float* bias) {
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t c = 0; c < columns; ++c) rows[r * ld + c] += bias[c];
  }
}

FOR_EACH_CPU void relu(float* values, int64_t size) {
  for (int64_t i = 0; i < size; ++i) values[i] = values[i] < 0 ? 0.0f : values[i];
}

FOR_EACH_CPU void relu_backward(float* grad, const float* before, int64_t size) {
  for (int64_t i = 0; i < size; ++i) grad[i] = before[i] <= 0 ? 0.0f : grad[i];
}

// Sum of value(0) ... value(size - 1) in 16 lanes, which vectorizes and rounds less than one long sum.
template <typename Function>
inline __attribute__((always_inline)) float sum_in_lanes(int64_t size, const Function& value) {
  float lane[16] = {};
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) {
    for (int64_t j = 0; j < 16; ++j) lane[j] += value(i + j);
  }
  for (; i < size; ++i) lane[i % 16] += value(i);
  float sum = 0;
  for (float partial : lane) sum += partial;
  return sum;
}

FOR_EACH_CPU void add_row_sums(const float* rows, int64_t count, int64_t columns, float* sums) {
  for (int64_t r = 0; r < count; ++r) sums[r] += sum_in_lanes(columns, [&](int64_t c) { return rows[r * columns + c]; });
}

FOR_EACH_CPU float dot(const float* x, const float* y, int64_t size) {
  return sum_in_lanes(size, [&](int64_t i) { return x[i] * y[i]; });
}

FOR_EACH_CPU void add_scaled(float* sum, const float* row, float factor, int64_t size) {
  for (int64_t i = 0; i < size; ++i) sum[i] += factor * row[i];
}

FOR_EACH_CPU void scale(float* target, const float* row, float factor, int64_t size) {
  for (int64_t i = 0; i < size; ++i) target[i] = factor * row[i];
}

enum class Activation { relu, gelu, swish, tanh };

Activation activation_of(c10::string_view name) {
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "swish") return Activation::swish;
  TORCH_CHECK(name == "tanh", "unknown activation ", name);
  return Activation::tanh;
}

Tensor view_of(float* values, int64_t size) { return at::from_blob(values, {size}, at::kFloat); }

void activate(Activation activation, float* values, int64_t size) {
  if (activation == Activation::relu) return relu(values, size);
  Tensor view = view_of(values, size);
  if (activation == Activation::gelu) at::gelu_(view);
  if (activation == Activation::swish) at::silu_(view);
  if (activation == Activation::tanh) at::tanh_(view);
}

// grad *= activation'(before); `after` is activation(before).
void activate_backward(Activation activation, float* grad, float* before, float* after, int64_t size) {
  if (activation == Activation::relu) return relu_backward(grad, before, size);
  Tensor view = view_of(grad, size);
  if (activation == Activation::gelu) at::gelu_backward_out(view, view, view_of(before, size));
  if (activation == Activation::swish) at::silu_backward_out(view, view, view_of(before, size));
  if (activation == Activation::tanh) at::tanh_backward_out(view, view, view_of(after, size));
}

// A thread's working memory, kept between calls.
float* scratch(int64_t size) {
  thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
  return memory.data();
}

// Rows [row, row + rows) of one expert and columns [inner, inner + width) of F; `part` numbers the ranges of F.
struct Task {
  int64_t expert, row, rows, inner, width, part;
};

// The experts that have rows; with `block_rows` cut into blocks of rows, with `parts` into ranges of F.
std::vector<Task> tasks_of(const Tensor& count_E, int64_t block_rows, int64_t ffn_dim, int64_t parts) {
  std::vector<Task> tasks;
  const int64_t width = round_up((ffn_dim + parts - 1) / parts, kInner);
  const int64_t* count = count_E.const_data_ptr<int64_t>();
  int64_t start = 0;
  for (int64_t expert = 0; expert < count_E.numel(); start += count[expert++]) {
    for (int64_t row = 0; row < count[expert]; row += block_rows) {
      for (int64_t part = 0; part < parts && part * width < ffn_dim; ++part) {
        tasks.push_back({expert, start + row, std::min(block_rows, count[expert] - row), part * width,
                         std::min(width, ffn_dim - part * width), part});
      }
    }
  }
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.rows * a.width > b.rows * b.width; });
  return tasks;
}

// How much longer than ideal the threads take if each takes the next task when it is free.
double imbalance(const std::vector<Task>& tasks) {
  std::vector<double> busy(at::get_num_threads(), 0.0);
  double total = 0;
  for (const Task& task : tasks) {
    const double cost = static_cast<double>(task.width) * (task.rows + kWeightsInRows);
    *std::min_element(busy.begin(), busy.end()) += cost;
    total += cost;
  }
  return *std::max_element(busy.begin(), busy.end()) * busy.size() / std::max(total, 1.0);
}

// The coarsest division of the work that keeps all threads busy.
std::vector<Task> balanced_tasks(const Tensor& count_E, int64_t block_rows, int64_t ffn_dim) {
  for (int64_t parts = 1;; parts *= 2) {
    std::vector<Task> tasks = tasks_of(count_E, block_rows, ffn_dim, parts);
    if (tasks.empty() || imbalance(tasks) < 1.1 || parts * kInner * 2 > round_up(ffn_dim, kInner)) return tasks;
  }
}

int64_t parts_of(const std::vector<Task>& tasks) {
  int64_t parts = 1;
  for (const Task& task : tasks) parts = std::max(parts, task.part + 1);
  return parts;
}

template <typename Function>
void run(int64_t tasks, const Function& function) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), tasks), 1, [&](int64_t, int64_t) {
    at::AutoDispatchBelowADInplaceOrView no_autograd;
    for (int64_t task = next++; task < tasks; task = next++) function(task);
  });
}

// Zeros that the system makes in pages of 2 MiB when somebody looks, or an undefined tensor if it cannot. For gradients of
// many experts of which few have any: what is never written costs neither time nor memory.
Tensor zeros_on_demand(at::IntArrayRef sizes) {
#if defined(__linux__)
  const size_t bytes = c10::multiply_integers(sizes) * sizeof(float);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return {};
  madvise(memory, bytes, MADV_HUGEPAGE);
  return at::from_blob(memory, sizes, [bytes](void* start) { munmap(start, bytes); }, at::kFloat);
#else
  return {};
#endif
}

void check(const Tensor& x_AD, const Tensor& weight1_EDF, const Tensor& count_E) {
  TORCH_CHECK(x_AD.scalar_type() == at::kFloat && weight1_EDF.scalar_type() == at::kFloat, "float32 is needed");
  TORCH_CHECK(count_E.scalar_type() == at::kLong && count_E.numel() == weight1_EDF.size(0), "count_E must be int64 [E]");
  const int64_t* count = count_E.const_data_ptr<int64_t>();
  int64_t total = 0;
  for (int64_t expert = 0; expert < count_E.numel(); total += count[expert++]) {
    TORCH_CHECK(count[expert] >= 0, "count_E must not be negative");
  }
  TORCH_CHECK(total == x_AD.size(0), "count_E must sum to the number of rows");
}

// Returns y [A, D] and, if `keep_inner`, x W1 + b1 [A, F] for the backward pass.
std::tuple<Tensor, Tensor> expert_ffn(const Tensor& x_in, const Tensor& weight1_EDF, const Tensor& bias1_EF,
                                      const Tensor& weight2_EFD, const Tensor& bias2_ED, const Tensor& count_in,
                                      c10::string_view activation_name, bool keep_inner) {
  const Tensor x_AD = x_in.contiguous(), count_E = count_in.contiguous();
  check(x_AD, weight1_EDF, count_E);
  const Activation activation = activation_of(activation_name);
  const int64_t total = x_AD.size(0), dim = x_AD.size(1), ffn_dim = weight1_EDF.size(2);
  const std::vector<Task> tasks = balanced_tasks(count_E, kForwardRows, ffn_dim);
  const int64_t parts = parts_of(tasks);
  Tensor y_PAD = at::empty({parts, total, dim}, x_AD.options());
  Tensor inner_AF = at::empty({keep_inner ? total : 0, ffn_dim}, x_AD.options());
  const float *x = x_AD.const_data_ptr<float>(), *weight1 = weight1_EDF.const_data_ptr<float>(),
              *bias1 = bias1_EF.const_data_ptr<float>(), *weight2 = weight2_EFD.const_data_ptr<float>(),
              *bias2 = bias2_ED.const_data_ptr<float>();
  float *y = y_PAD.data_ptr<float>(), *inner = inner_AF.data_ptr<float>();

  run(tasks.size(), [&](int64_t number) {
    const Task& task = tasks[number];
    const int64_t rows = round_up(task.rows, kRowMultiple);
    const bool padded = rows != task.rows;
    float* h = scratch(rows * (kInner + 2 * dim));
    const float* in = x + task.row * dim;
    float* out = y + (task.part * total + task.row) * dim;
    float* padded_out = h + rows * kInner + rows * dim;
    if (padded) {
      float* copy = h + rows * kInner;
      std::memcpy(copy, in, task.rows * dim * sizeof(float));
      std::fill_n(copy + task.rows * dim, (rows - task.rows) * dim, 0.0f);
      in = copy;
    }
    float* target = padded ? padded_out : out;
    for (int64_t f = task.inner; f < task.inner + task.width; f += kInner) {
      const int64_t width = std::min(kInner, task.inner + task.width - f);
      multiply(rows, width, dim, in, dim, weight1 + task.expert * dim * ffn_dim + f, ffn_dim, h, width, false);
      add_bias(h, rows, width, width, bias1 + task.expert * ffn_dim + f);
      if (keep_inner) {
        for (int64_t r = 0; r < task.rows; ++r) {
          std::memcpy(inner + (task.row + r) * ffn_dim + f, h + r * width, width * sizeof(float));
        }
      }
      activate(activation, h, rows * width);
      multiply(rows, dim, width, h, width, weight2 + (task.expert * ffn_dim + f) * dim, dim, target, dim,
               f > task.inner);
    }
    if (padded) std::memcpy(out, padded_out, task.rows * dim * sizeof(float));
    if (task.part == 0) add_bias(out, task.rows, dim, dim, bias2 + task.expert * dim);
  });
  return {parts == 1 ? y_PAD.squeeze(0) : y_PAD.sum(0), inner_AF};
}

// Returns the gradients of x, W1, b1, W2 and b2; without `needs_weights` only that of x, the others are empty.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> expert_ffn_backward(
    const Tensor& grad_in, const Tensor& x_in, const Tensor& inner_AF, const Tensor& weight1_EDF,
    const Tensor& weight2_EFD, const Tensor& count_in, c10::string_view activation_name, bool needs_weights) {
  const Tensor grad_AD = grad_in.contiguous(), x_AD = x_in.contiguous(), count_E = count_in.contiguous();
  check(x_AD, weight1_EDF, count_E);
  const Activation activation = activation_of(activation_name);
  const int64_t experts = weight1_EDF.size(0), total = x_AD.size(0), dim = x_AD.size(1), ffn_dim = weight1_EDF.size(2);
  const std::vector<Task> tasks = balanced_tasks(count_E, std::max<int64_t>(total, 1), ffn_dim);
  const int64_t parts = parts_of(tasks), stacked = needs_weights ? experts : 0;
  Tensor grad_x_PAD = at::empty({parts, total, dim}, x_AD.options());
  const int64_t* count = count_E.const_data_ptr<int64_t>();
  const int64_t idle = std::count(count, count + experts, 0);
  const bool mostly_idle = needs_weights && 6 * (experts - idle) < experts;
  Tensor grad_weight1, grad_weight2;
  if (mostly_idle) {
    grad_weight1 = zeros_on_demand({experts, dim, ffn_dim});
    grad_weight2 = zeros_on_demand({experts, ffn_dim, dim});
  }
  const bool zeroed = grad_weight1.defined() && grad_weight2.defined();
  if (!zeroed) {
    grad_weight1 = at::empty({stacked, dim, ffn_dim}, x_AD.options());
    grad_weight2 = at::empty({stacked, ffn_dim, dim}, x_AD.options());
  }
  Tensor grad_bias1 = at::zeros({stacked, ffn_dim}, x_AD.options());
  Tensor grad_bias2 = at::zeros({stacked, dim}, x_AD.options());
  const float *x = x_AD.const_data_ptr<float>(), *grad = grad_AD.const_data_ptr<float>(),
              *inner = inner_AF.const_data_ptr<float>(), *weight1 = weight1_EDF.const_data_ptr<float>(),
              *weight2 = weight2_EFD.const_data_ptr<float>();
  float *grad_x = grad_x_PAD.data_ptr<float>(), *grad_w1 = grad_weight1.data_ptr<float>(),
        *grad_w2 = grad_weight2.data_ptr<float>(), *grad_b1 = grad_bias1.data_ptr<float>(),
        *grad_b2 = grad_bias2.data_ptr<float>();

  run(tasks.size(), [&](int64_t number) {
    const Task& task = tasks[number];
    const int64_t most = round_up(std::min(task.rows, kBackwardRows), kColumnMultiple);
    float* x_T = scratch(most * (4 * dim + 4 * kInner));
    float *dy_T = x_T + dim * most, *dx_T = dy_T + dim * most, *dy_copy = dx_T + dim * most;
    float *u_T = dy_copy + dim * most, *h_T = u_T + kInner * most, *dh_T = h_T + kInner * most,
          *dh = dh_T + kInner * most;
    const float *w1 = weight1 + task.expert * dim * ffn_dim, *w2 = weight2 + task.expert * ffn_dim * dim;
    float *dw1 = grad_w1 + task.expert * dim * ffn_dim, *dw2 = grad_w2 + task.expert * ffn_dim * dim;
    for (int64_t row = 0; row < task.rows; row += kBackwardRows) {
      const int64_t rows = std::min(kBackwardRows, task.rows - row), padded = round_up(rows, kColumnMultiple);
      const int64_t depth = round_up(rows, kRowMultiple);
      const bool later = row > 0;
      const float* dy = grad + (task.row + row) * dim;
      transpose(dy, dim, rows, dim, dy_T, padded, padded);
      if (needs_weights) {
        transpose(x + (task.row + row) * dim, dim, rows, dim, x_T, padded, padded);
        if (task.part == 0) add_row_sums(dy_T, dim, padded, grad_b2 + task.expert * dim);
        if (depth != rows) {
          std::memcpy(dy_copy, dy, rows * dim * sizeof(float));
          std::fill_n(dy_copy + rows * dim, (depth - rows) * dim, 0.0f);
          dy = dy_copy;
        }
      }
      for (int64_t f = task.inner; f < task.inner + task.width; f += kInner) {
        const int64_t width = std::min(kInner, task.inner + task.width - f);
        multiply(width, padded, dim, w2 + f * dim, dim, dy_T, padded, dh_T, padded, false);
        transpose(inner + (task.row + row) * ffn_dim + f, ffn_dim, rows, width, u_T, padded, padded);
        std::memcpy(h_T, u_T, width * padded * sizeof(float));
        activate(activation, h_T, width * padded);
        activate_backward(activation, dh_T, u_T, h_T, width * padded);
        if (needs_weights) {
          add_row_sums(dh_T, width, padded, grad_b1 + task.expert * ffn_dim + f);
          multiply(width, dim, depth, h_T, padded, dy, dim, dw2 + f * dim, dim, later);
          transpose(dh_T, padded, width, padded, dh, width, width);
          multiply(dim, width, depth, x_T, padded, dh, width, dw1 + f, ffn_dim, later);
        }
        multiply(dim, padded, width, w1 + f, ffn_dim, dh_T, padded, dx_T, padded, f > task.inner);
      }
      transpose(dx_T, padded, dim, rows, grad_x + (task.part * total + task.row + row) * dim, dim, dim);
    }
  });
  run(zeroed ? 0 : stacked, [&](int64_t expert) {
    if (count[expert] == 0) {
      std::fill_n(grad_w1 + expert * dim * ffn_dim, dim * ffn_dim, 0.0f);
      std::fill_n(grad_w2 + expert * dim * ffn_dim, dim * ffn_dim, 0.0f);
    }
  });
  return {parts == 1 ? grad_x_PAD.squeeze(0) : grad_x_PAD.sum(0), grad_weight1, grad_bias1, grad_weight2, grad_bias2};
}

// Sum over assignments: y[token_A[a]] += weight_A[a] * x_AD[a], in the order of the assignments. Threads share columns.
Tensor combine(const Tensor& x_in, const Tensor& token_in, const std::optional<Tensor>& weight_in, int64_t tokens) {
  const Tensor x_AD = x_in.contiguous(), token_A = token_in.contiguous();
  const Tensor weight_A = weight_in ? weight_in->contiguous() : Tensor();
  const int64_t total = x_AD.size(0), dim = x_AD.size(1);
  Tensor y_ND = at::zeros({tokens, dim}, x_AD.options());
  const float *x = x_AD.const_data_ptr<float>(), *weight = weight_in ? weight_A.const_data_ptr<float>() : nullptr;
  const int64_t* token = token_A.const_data_ptr<int64_t>();
  float* y = y_ND.data_ptr<float>();
  at::parallel_for(0, dim, std::max<int64_t>(64, 32768 / std::max<int64_t>(total, 1)), [&](int64_t from, int64_t to) {
    for (int64_t a = 0; a < total; ++a) {
      add_scaled(y + token[a] * dim + from, x + a * dim + from, weight ? weight[a] : 1.0f, to - from);
    }
  });
  return y_ND;
}

// Gradients of `combine` for x and weight.
std::tuple<Tensor, Tensor> combine_backward(const Tensor& grad_in, const Tensor& x_in, const Tensor& token_in,
                                            const Tensor& weight_in) {
  const Tensor grad_ND = grad_in.contiguous(), x_AD = x_in.contiguous(), token_A = token_in.contiguous(),
               weight_A = weight_in.contiguous();
  const int64_t total = x_AD.size(0), dim = x_AD.size(1);
  Tensor grad_x_AD = at::empty_like(x_AD), grad_weight_A = at::empty_like(weight_A);
  const float *x = x_AD.const_data_ptr<float>(), *weight = weight_A.const_data_ptr<float>(),
              *grad = grad_ND.const_data_ptr<float>();
  const int64_t* token = token_A.const_data_ptr<int64_t>();
  float *grad_x = grad_x_AD.data_ptr<float>(), *grad_weight = grad_weight_A.data_ptr<float>();
  at::parallel_for(0, total, std::max<int64_t>(1, 32768 / dim), [&](int64_t from, int64_t to) {
    for (int64_t a = from; a < to; ++a) {
      const float* row = grad + token[a] * dim;
      scale(grad_x + a * dim, row, weight[a], dim);
      grad_weight[a] = dot(x + a * dim, row, dim);
    }
  });
  return {grad_x_AD, grad_weight_A};
}

// A stable counting sort: the order of the assignments by expert, and how many each expert has.
std::tuple<Tensor, Tensor> sort_by_expert(const Tensor& expert_in, int64_t experts) {
  const Tensor expert_A = expert_in.contiguous();
  const int64_t total = expert_A.numel();
  Tensor order_A = at::empty_like(expert_A), count_E = at::zeros({experts}, expert_A.options());
  const int64_t* expert = expert_A.const_data_ptr<int64_t>();
  int64_t *order = order_A.data_ptr<int64_t>(), *count = count_E.data_ptr<int64_t>();
  for (int64_t a = 0; a < total; ++a) {
    TORCH_CHECK_INDEX(0 <= expert[a] && expert[a] < experts, "expert ", expert[a], " is not one of ", experts);
    ++count[expert[a]];
  }
  std::vector<int64_t> place(experts);
  for (int64_t e = 1; e < experts; ++e) place[e] = place[e - 1] + count[e - 1];
  for (int64_t a = 0; a < total; ++a) order[place[expert[a]]++] = a;
  return {order_A, count_E};
}

// Whether this CPU has the micro-kernels.
bool available() {
  float a[16 * 16] = {}, b[16 * 16] = {}, c[16 * 16] = {};
  try {
    at::native::cpublas::brgemm(16, 16, 16, 16, 16, 16, false, a, b, c);
  } catch (const std::exception&) {
    return false;
  }
  return true;
}

}  // namespace

TORCH_LIBRARY(moe_nmt, library) {
  library.def(
      "expert_ffn(Tensor x, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, Tensor count, str activation, "
      "bool keep_inner) -> (Tensor, Tensor)");
  library.def(
      "expert_ffn_backward(Tensor grad, Tensor x, Tensor inner, Tensor weight1, Tensor weight2, Tensor count, "
      "str activation, bool needs_weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def("combine(Tensor x, Tensor token, Tensor? weight, int tokens) -> Tensor");
  library.def("combine_backward(Tensor grad, Tensor x, Tensor token, Tensor weight) -> (Tensor, Tensor)");
  library.def("sort_by_expert(Tensor expert, int experts) -> (Tensor, Tensor)");
  library.def("available() -> bool", &available);
}

TORCH_LIBRARY_IMPL(moe_nmt, CPU, library) {
  library.impl("expert_ffn", &expert_ffn);
  library.impl("expert_ffn_backward", &expert_ffn_backward);
  library.impl("combine", &combine);
  library.impl("combine_backward", &combine_backward);
  library.impl("sort_by_expert", &sort_by_expert);
}
