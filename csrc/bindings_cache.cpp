// Bindings of the ops on the tree and the slot cache. The pattern is explained in common/tensor_arg.h.
// Values that kernels rely on (parents, slots, lengths) are checked here, before anything is written.
#include <algorithm>

#include "bindings.h"
#include "bindings_checks.h"
#include "common/aligned.h"
#include "common/backend.h"
#include "common/tensor_arg.h"
#include "ops.h"
#include "tree_attention/tree_attention_plan.h"

namespace py = pybind11;

namespace specbranch {

void check_slots(const TensorArg& slots, int64_t S) {
  const int32_t* values = slots.data<int32_t>();
  for (int64_t i = 0; i < slots.numel(); ++i) {
    if (values[i] < -1 || values[i] >= S) {
      slots.fail_element(i, "-1 (skip) or a slot in 0.." + std::to_string(S - 1));
    }
  }
}

CacheLayer cache_layer(const TensorArg& cache) {
  // The stride of a dimension of size 1 may be anything; it must not decide how wide accesses are.
  const auto stride = [&](int dim) { return cache.size(dim) == 1 ? 0 : cache.stride(dim); };
  return {cache.data(), cache.dtype(), stride(0), stride(1), stride(2), stride(3)};
}

void check_prefix(const TensorArg& prefix, int64_t N, int64_t S) {
  const int32_t* values = prefix.data<int32_t>();
  for (int64_t b = 0; b < prefix.numel(); ++b) {
    if (values[b] < 0 || values[b] + N > S) {
      prefix.fail_element(b, "in 0.." + std::to_string(S - N) + " (" + std::to_string(S) + " slots, " +
                                 std::to_string(N) + " of them for the queries)");
    }
  }
}

// No bit may point behind the last slot.
void check_bits(const TensorArg& bits, const TensorArg& prefix, int64_t S) {
  const int64_t N = bits.size(1), W = bits.size(2);
  for (int64_t row = 0; row < bits.size(0) * N; ++row) {
    const int64_t tree_slots = S - prefix.data<int32_t>()[row / N];
    for (int64_t word = tree_slots / 32; word < W; ++word) {
      const uint32_t inside = word == tree_slots / 32 ? (1u << (tree_slots % 32)) - 1 : 0u;
      if ((bits.data<uint32_t>()[row * W + word] & ~inside) == 0) continue;
      bits.fail_element(row * W + word, "without bits for slots from " + std::to_string(S) + " on, the cache's end");
    }
  }
}

namespace {

void check_parents(const TensorArg& parents, int64_t N) {
  const int32_t* values = parents.data<int32_t>();
  for (int64_t i = 0; i < parents.numel(); ++i) {
    if (values[i] < -1 || values[i] >= i % N) parents.fail_element(i, "-1 or the index of an earlier node");
  }
}

void check_commit(const TensorArg& source, const TensorArg& dst_start, const TensorArg& length, int64_t S) {
  const int64_t M = source.size(1);
  for (int64_t b = 0; b < source.size(0); ++b) {
    const int32_t* sources = source.data<int32_t>() + b * M;
    const int64_t start = dst_start.data<int32_t>()[b], count = length.data<int32_t>()[b];
    if (count < 0 || count > M) length.fail_element(b, "in 0.." + std::to_string(M));
    if (start < 0 || start + count > S) dst_start.fail_element(b, "in 0.." + std::to_string(S - count));
    for (int64_t i = 0; i < count; ++i) {
      if (sources[i] < start + i) source.fail_element(b * M + i, "at least dst_start + " + std::to_string(i));
      if (sources[i] >= S) source.fail_element(b * M + i, "below " + std::to_string(S) + ", the number of slots");
      if (i > 0 && sources[i] <= sources[i - 1]) source.fail_element(b * M + i, "above the one before it");
    }
  }
}

void tree_mask(py::handle parents_, py::handle bits_, py::handle depth_, py::handle backend_, py::handle stream_) {
  TensorArg parents("parents", parents_, kInt32, "[B, N]", kAnyDevice);
  TensorArg bits("out bits", bits_, kInt32 | kUInt32, "[B, N, ceil(N / 32)]", kWritable | kAnyDevice);
  TensorArg depth("out depth", depth_, kInt32, "[B, N]", kWritable | kAnyDevice);
  const int64_t B = parents.size(0), N = parents.size(1), W = (N + 31) / 32;
  bits.sizes({B, N, W});
  depth.sizes({B, N});
  const Backend backend(backend_, stream_, {&parents, &bits, &depth});
  if (backend.on_cpu()) check_parents(parents, N);
  TreeMaskParams params{B, N, W, parents.data<int32_t>(), bits.data<uint32_t>(), depth.data<int32_t>()};
  backend.run(static_cast<double>(B * N * W) * 5e-3, params, SB_BACKENDS(tree_mask));
}

// The parts of the parameters that q and the cache give.
TreeAttentionParams attention_params(const TensorArg& q, const TensorArg& cache) {
  TreeAttentionParams params{};
  params.B = q.size(0), params.N = q.size(1), params.Hq = q.size(2), params.D = q.size(3);
  params.Hkv = cache.size(2), params.S = cache.size(3);
  cache.sizes({2, params.B, params.Hkv, params.S, params.D});
  if (params.Hkv == 0 || params.Hq % params.Hkv != 0) {
    q.fail_value("had " + std::to_string(params.Hq) + " heads, must have a multiple of the cache's " +
                 std::to_string(params.Hkv));
  }
  params.dtype = q.dtype(), params.q = q.data(), params.cache = cache_layer(cache);
  return params;
}

TensorArg attention_q(py::handle q) { return {"q", q, kFloating, "[B, N, Hq, D]", kAnyDevice}; }
TensorArg attention_cache(py::handle cache, Types type) {
  return {"cache_layer", cache, type, "[2, B, Hkv, S, D]", kStrided | kAnyDevice};
}

int64_t attention_workspace_bytes(py::handle q_, py::handle cache_) {
  const TensorArg q = attention_q(q_), cache = attention_cache(cache_, q.type());
  return tree_attention_workspace_bytes(attention_params(q, cache));
}

void check_workspace(const TensorArg& workspace, const TreeAttentionParams& params) {
  const int64_t bytes = tree_attention_workspace_bytes(params);
  if (bytes == 0) return;
  const int64_t given = workspace.given() ? workspace.size(0) : 0;
  if (given < bytes)
    workspace.fail_value("had " + std::to_string(given) + " bytes, must have " + std::to_string(bytes));
  if (!aligned({workspace.data()}, sizeof(float))) workspace.fail_value("was not aligned to 4 bytes");
}

double attention_microseconds(const TreeAttentionParams& p) {
  const int32_t* lengths = p.prefix_length;
  const int64_t longest = p.B > 0 ? *std::max_element(lengths, lengths + p.B) + p.N : 0;
  return static_cast<double>(p.B * longest * p.N * p.Hq * p.D) * 1e-4;
}

void tree_attention(py::handle q_, py::handle cache_, py::handle prefix_, py::handle bits_, float scale,
                    py::handle out_, py::handle workspace_, py::handle backend_, py::handle stream_) {
  const TensorArg q = attention_q(q_), cache = attention_cache(cache_, q.type());
  TensorArg prefix("prefix_length", prefix_, kInt32, "[B]", kAnyDevice);
  TensorArg bits("ancestor_bits", bits_, kInt32 | kUInt32, "[B, N, ceil(T / 32)]", kOptional | kAnyDevice);
  TensorArg out("out", out_, q.type(), "[B, N, Hq, D]", kWritable | kAnyDevice);
  TensorArg workspace("workspace", workspace_, kUInt8, "[bytes]", kOptional | kWritable | kAnyDevice);
  TreeAttentionParams params = attention_params(q, cache);
  params.W = bits.given() ? bits.size(2) : 0;
  prefix.sizes({params.B});
  bits.sizes({params.B, params.N, params.W});
  out.sizes({params.B, params.N, params.Hq, params.D});
  const Backend backend(backend_, stream_, {&q, &cache, &prefix, &bits, &out, &workspace});
  if (backend.on_cpu()) {
    check_prefix(prefix, params.N, params.S);
    if (bits.given()) check_bits(bits, prefix, params.S);
  }
  if (backend.runs_kernels()) check_workspace(workspace, params);
  params.scale = scale, params.prefix_length = prefix.data<int32_t>(), params.ancestor_bits = bits.data<uint32_t>();
  params.out = out.data(), params.workspace = workspace.data();
  backend.run(backend.on_cpu() ? attention_microseconds(params) : 0.0, params, SB_BACKENDS(tree_attention));
}

void kv_write(py::handle key_, py::handle value_, py::handle slots_, py::handle cache_, py::handle backend_,
              py::handle stream_) {
  TensorArg key("key", key_, kFloating, "[B, N, Hkv, D]", kAnyDevice);
  TensorArg value("value", value_, key.type(), "[B, N, Hkv, D]", kAnyDevice);
  TensorArg slots("slots", slots_, kInt32, "[B, N]", kAnyDevice);
  TensorArg cache("cache_layer", cache_, key.type(), "[2, B, Hkv, S, D]", kStrided | kWritable | kAnyDevice);
  const int64_t B = key.size(0), N = key.size(1), Hkv = key.size(2), D = key.size(3), S = cache.size(3);
  value.sizes({B, N, Hkv, D});
  slots.sizes({B, N});
  cache.sizes({2, B, Hkv, S, D});
  const Backend backend(backend_, stream_, {&key, &value, &slots, &cache});
  if (backend.on_cpu()) check_slots(slots, S);
  KvWriteParams params{
      B, N, Hkv, S, D, key.dtype(), key.data(), value.data(), slots.data<int32_t>(), cache_layer(cache)};
  backend.run(static_cast<double>(key.numel()) * 2e-4, params, SB_BACKENDS(kv_write));
}

void kv_commit(py::handle cache_, py::handle source_, py::handle start_, py::handle length_, py::handle backend_,
               py::handle stream_) {
  TensorArg cache("cache", cache_, kFloating, "[L, 2, B, Hkv, S, D]", kWritable | kAnyDevice);
  TensorArg source("source_slots", source_, kInt32, "[B, M]", kAnyDevice);
  TensorArg start("dst_start", start_, kInt32, "[B]", kAnyDevice);
  TensorArg length("length", length_, kInt32, "[B]", kAnyDevice);
  const int64_t L = cache.size(0), B = cache.size(2), Hkv = cache.size(3), S = cache.size(4), D = cache.size(5);
  cache.sizes({L, 2, B, Hkv, S, D});
  source.sizes({B, source.size(1)});
  start.sizes({B});
  length.sizes({B});
  const Backend backend(backend_, stream_, {&cache, &source, &start, &length});
  if (backend.on_cpu()) check_commit(source, start, length, S);
  KvCommitParams params{L,
                        B,
                        source.size(1),
                        Hkv,
                        S,
                        D,
                        cache.dtype(),
                        cache.data(),
                        source.data<int32_t>(),
                        start.data<int32_t>(),
                        length.data<int32_t>()};
  const double microseconds = static_cast<double>(L * 2 * source.numel() * Hkv * D) * 2e-4;
  backend.run(microseconds, params, SB_BACKENDS(kv_commit));
}

}  // namespace

void register_cache_ops(py::module_& m) {
  m.def("tree_mask", &tree_mask);
  m.def("tree_attention", &tree_attention);
  m.def("tree_attention_workspace_bytes", &attention_workspace_bytes);
  m.def("kv_write", &kv_write);
  m.def("kv_commit", &kv_commit);
}

}  // namespace specbranch
