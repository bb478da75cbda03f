// Every op of SpecBranch, declared once: a parameter struct whose comments give the shape of each pointer, and one
// `run(params, stream)` per backend. Kernels know pointers, sizes and a stream, nothing of tensors or Python.
//
// Letters: B batch, G draft length, V vocabulary, K branches, N tree nodes (queries), T tree slots, S cache slots,
//          L layers, Hq / Hkv query / key-value heads, D head dimension.
// Unless a stride is named, arrays are contiguous in the shape given. -1 means "no token" / "none" everywhere.
// Floating point inputs may be float32, bfloat16 or float16 (DType); all arithmetic is float32 or wider.
#pragma once

// clang-format off: the comments stand in columns

#include <cstdint>

namespace specbranch {

enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kInt8 = 3 };  // kInt8: packed weights only

// How a token is drawn from a row of logits.
//   kInverseCdf: one uniform per position, inverse CDF in a fixed block order ("rejection" verification).
//   kGumbel:     argmax of logit/temperature + Gumbel noise keyed by (seed, position, token) ("coupled").
enum class Draw : int32_t { kInverseCdf = 0, kGumbel = 1 };

// A matrix of logits: `rows` leading coordinates, last dimension contiguous.
struct Logits {
  const void* data;
  DType dtype;
  int64_t stride0;  // elements between batch rows
  int64_t stride1;  // elements between positions of one batch row (0 for 2-D inputs)
};

// ---------------------------------------------------------------------------------------------- sampling
// Bad rows, all ops of this section and the next: a NaN or +inf logit, or none that is finite and kept (NaN cutoffs keep
// none). Temperature 0 is argmax and ignores cutoffs; the confidence, probabilities and entropy asked for all the same
// are those of temperature 1 with nothing cut.
// Keep the logits >= cutoff[b]: the combined threshold of top-k, then top-p of what is left, and min-p.
struct LogitCutoffParams {
  int64_t B, V;
  Logits logits;             // [B, V]
  const float* temperature;  // [B], 0 = greedy (cutoff is then the maximum)
  const int32_t* top_k;      // [B], 0 = off
  const float* top_p;        // [B], 1 = off
  const float* min_p;        // [B], 0 = off
  float* cutoff;             // out [B]; -inf: nothing cut; NaN: bad row
};

struct SampleParams {
  int64_t B, V;
  Draw draw;
  Logits logits;             // [B, V]
  const float* temperature;  // [B], 0 = argmax, lowest index on ties
  const float* cutoff;       // [B] or nullptr
  const int64_t* seed;       // [B]
  const int64_t* position;   // [B] absolute position of the token to be drawn
  const int32_t* lane;       // [B] or nullptr (0): separates branches that draw at the same position
  int32_t purpose;           // Philox purpose word, see common/philox.h
  int32_t* token;            // out [B]; -1: the row has a NaN logit, or no finite one
  float* probability;        // out [B] of the token, transformed distribution (temperature 1 where temperature is 0)
  float* max_probability;    // out [B] of the same distribution
  float* entropy;            // out [B] nats
};

struct BranchTopkParams {
  int64_t B, V, K;           // K = k_max
  Draw draw;                 // kGumbel: candidates are the top k of logit/temperature + noise
  Logits logits;             // [B, V]
  const float* temperature;  // [B]
  const float* cutoff;       // [B] or nullptr
  const int64_t* seed;       // [B] (kGumbel only, may be nullptr otherwise)
  const int64_t* position;   // [B] (kGumbel only, may be nullptr otherwise)
  int32_t* candidates;       // out [B, K], -1 beyond num_branches, best first
  int32_t* num_branches;     // out [B] = max(1, floor(K * (1 - confidence))), at most the tokens above the cutoff; 0: NaN row
  float* confidence;         // out [B] max probability (temperature 1 where temperature is 0)
};

// ---------------------------------------------------------------------------------------------- verification
// One chain with branch candidates after it. Row i of target_logits is the distribution of the token at
// position[b] + i, i.e. after i chain tokens. Rows behind the first rejection are not looked at, and at temperature 0 or
// coupled no draft row is: a bad one among them is not reported.
struct VerifyParams {
  int64_t B, G, V, K;
  Draw draw;                    // kInverseCdf: rejection sampling; kGumbel: coupled (draft_logits unused)
  Logits target_logits;         // [B, G+1, V]
  Logits draft_logits;          // [B, G, V]; data may be nullptr when coupled or G = 0
  const int32_t* draft_tokens;  // [B, G]
  const int32_t* chain_length;  // [B], 0..G
  const int32_t* branch_tokens; // [B, K]
  const int32_t* num_branches;  // [B], 0..K
  const float* temperature;     // [B]
  const float* target_cutoff;   // [B, G+1] or nullptr
  const float* draft_cutoff;    // [B, G] or nullptr
  const int64_t* seed;          // [B]
  const int64_t* position;      // [B] absolute position of draft_tokens[b, 0]
  int32_t* num_accepted;        // out [B]; -1: a NaN logit was met
  int32_t* next_token;          // out [B]; recovered or bonus token; -1: a NaN logit was met
  int32_t* survivor;            // out [B]; index of the branch equal to next_token after a full chain, else -1
  void* workspace;              // of the kernels: verify_plan.h says how much; the CPU needs none
};

// The same over a tree. A node's children are either all deterministic candidates (matched against one draw of the
// target) or all i.i.d. samples of the same draft row (multi-round rejection sampling).
struct VerifyTreeParams {
  int64_t B, N, V;
  Draw draw;
  Logits target_logits;      // [B, N+1, V]; row 0: after the committed prefix, row i+1: after node i
  Logits draft_logits;       // [B, N+1, V]; row r: the distribution that the children of r were sampled from
  const int32_t* tokens;     // [B, N]
  const int32_t* parents;    // [B, N], -1 = root, parents[i] < i
  const uint8_t* sampled;    // [B, N] 1: drawn from the draft row, 0: deterministic candidate; nullptr: all 0
  const int32_t* num_nodes;  // [B], 0..N
  const float* temperature;  // [B]
  const float* target_cutoff;// [B, N+1] or nullptr
  const float* draft_cutoff; // [B, N+1] or nullptr
  const int64_t* seed;       // [B]
  const int64_t* position;   // [B] absolute position of the children of the root
  int32_t* num_accepted;     // out [B]; nodes on the accepted path; -1: NaN
  int32_t* path;             // out [B, N]; accepted nodes from the root, -1 beyond
  int32_t* next_token;       // out [B]; the target's token after the path; -1: NaN
  void* workspace;           // of the kernels: verify_plan.h says how much; the CPU needs none
};

// ---------------------------------------------------------------------------------------------- tree and cache
struct TreeMaskParams {
  int64_t B, N, W;           // W = ceil(N / 32)
  const int32_t* parents;    // [B, N], -1 = root, parents[i] < i
  uint32_t* bits;            // out [B, N, W]; bit j of row i: j is i or an ancestor of i
  int32_t* depth;            // out [B, N]; 0 for children of the root
};

// Slot cache of one layer: [2, B, Hkv, S, D], last dimension contiguous; kv_stride .. slot_stride in elements.
struct CacheLayer {
  void* data;
  DType dtype;
  int64_t kv_stride, batch_stride, head_stride, slot_stride;
};

struct TreeAttentionParams {
  int64_t B, N, Hq, Hkv, S, D, W;
  float scale;
  DType dtype;                    // of q, cache and out
  const void* q;                  // [B, N, Hq, D]
  CacheLayer cache;
  const int32_t* prefix_length;   // [B] slots 0..prefix-1 are visible to every query
  const uint32_t* ancestor_bits;  // [B, N, W] bit j: slot prefix_length[b] + j is visible (the N nodes may be the last
                                  // of a larger tree); nullptr: causal, query i sees slots prefix_length[b] + 0..i
  void* out;                      // [B, N, Hq, D]; a query that sees nothing gets zeros
  void* workspace = nullptr;      // tree_attention_workspace_bytes(params), uninitialised; the CPU wants none
};

struct KvWriteParams {
  int64_t B, N, Hkv, S, D;
  DType dtype;
  const void* key;       // [B, N, Hkv, D]
  const void* value;     // [B, N, Hkv, D]
  const int32_t* slots;  // [B, N] destination slot, -1: skip
  CacheLayer cache;
};

// Slots of the kept path become contiguous at dst_start, all layers, K and V. source_slots ascend strictly and
// source_slots[b, i] >= dst_start[b] + i, so that moving in order overwrites nothing that is still needed.
// Sources and destinations lie in 0..S-1: checked by the bindings on the CPU, the caller's duty on the device.
struct KvCommitParams {
  int64_t L, B, M, Hkv, S, D;
  DType dtype;
  void* cache;                  // [L, 2, B, Hkv, S, D] contiguous
  const int32_t* source_slots;  // [B, M]
  const int32_t* dst_start;     // [B]
  const int32_t* length;        // [B] how many of the M move
};

// ---------------------------------------------------------------------------------------------- around the products
// qkv of N tokens: normalise q and k heads where weights are given (Qwen3), rotate (rotate-half RoPE), write k and v
// into their slots, return q.
struct RopeKvWriteParams {
  int64_t B, N, Hq, Hkv, S, D, P;  // P rows in the rotary tables
  DType dtype;
  float eps;
  const void* qkv;           // [B, N, (Hq + 2 Hkv) * D]
  const void* q_norm;        // [D] or nullptr
  const void* k_norm;        // [D] or nullptr
  const float* cos_table;    // [P, D/2]
  const float* sin_table;    // [P, D/2]
  const int32_t* positions;  // [B, N] row of the tables
  const int32_t* slots;      // [B, N]
  CacheLayer cache;
  void* q;                   // out [B, N, Hq, D]
};

// out = x weight^T + bias, for few rows; the weight is packed in panels of 64 outputs, padded with zeros; see linear_cpu.cpp.
// A panel of int8 ends in the scales of its outputs, 64 float32: four rows more.
constexpr int64_t kScaleRows = 4;
struct LinearParams {
  int64_t rows, K, N;
  DType dtype;         // of x, bias and out
  DType weight_dtype;  // float32, bfloat16 or int8
  const void* x;       // [rows, K]
  const void* weight;  // [ceil(N / 64), K, 64]; int8: [ceil(N / 64), K + 4, 64]
  const void* bias;    // [N] or nullptr
  void* out;           // [rows, N]
};

// What it costs on one core, roughly: the weight's bytes for few rows, multiply-adds for many.
inline double linear_microseconds(const LinearParams& p) {
  return static_cast<double>(p.K * p.N) * (0.8 + 1.8 * static_cast<double>(p.rows)) * 1e-5;
}

// residual += delta (if given); out = residual / rms(residual) * weight.
struct AddRmsNormParams {
  int64_t rows, D;
  DType dtype;
  float eps;
  const void* delta;   // [rows, D] or nullptr
  const void* weight;  // [D]
  void* residual;      // in/out [rows, D]
  void* out;           // [rows, D]
};

// out = silu(gate) * up.
struct SiluMulParams {
  int64_t rows, F;
  DType dtype;
  const void* gate_up;  // [rows, 2F]: gate, then up
  void* out;            // [rows, F]
};

// All layers of a Llama decoder: the ops above in a row. Its rows are the tokens of one sequence, or of several, one
// after the other, each with a cache of its own: the weights are read once for all of them.
struct DecoderLinear {
  DType dtype;  // of the weight
  const void* weight;
  const void* bias;
};
struct DecoderLayer {
  const void* input_norm;
  DecoderLinear qkv;
  const void* q_norm;
  const void* k_norm;
  DecoderLinear out;
  const void* mlp_norm;
  DecoderLinear gate_up, down;
};
struct DecoderSequence {
  int64_t N, S, W;
  void* cache;                    // [L, 2, 1, Hkv, S, D]
  const int32_t* positions;       // [N]
  const int32_t* slots;           // [N]
  const int32_t* prefix_length;   // [1]
  const uint32_t* ancestor_bits;  // [N, W] or nullptr, as for tree_attention
};
struct DecoderParams {
  int64_t L, B, N, width, Hq, Hkv, D, F, P, K;  // N: tokens of all B sequences
  float eps, scale;
  DType dtype;
  const DecoderLayer* layers;        // [L]
  const void* final_norm;            // [width]
  const float* cos_table;            // [P, D/2]
  const float* sin_table;            // [P, D/2]
  const DecoderSequence* sequences;  // [B]
  void* residual;                    // in/out [N, width]: the embeddings, then the last layer's output
  void* hidden;                      // out [N, K, width], outputs of the last K layers; nullptr where K = 0
  void* out;                         // out [N, width], normalised
};

// From tokens to logits: embedding, decoder, and the head for the last rows of each sequence.
struct ForwardParams {
  DecoderParams decoder;     // its residual and out are the op's own
  const void* embedding;     // [V, width], decoder.dtype
  DecoderLinear head;        // V outputs
  int64_t V;
  const int64_t* tokens;     // [N]
  const int64_t* head_rows;  // [B] how many of its last rows; nullptr: all rows
  void* logits;              // out [rows, V], decoder.dtype
};

// The bookkeeping between two rounds whose state lives on the device; see advance/advance.h.
constexpr int64_t kReportHead = 6;
struct AdvanceParams {
  int64_t B, G, K, T, R;          // K = 0: no branches; T room for tokens; R rows of the report ring
  const int32_t* num_accepted;    // [B] the verdict, as `verify` gives it
  const int32_t* next_token;      // [B]
  const int32_t* survivor;        // [B]
  const int32_t* num_branches;    // [B] or nullptr; for the report only
  const int32_t* drafted;         // [B, G, K] tokens drawn behind the branches, step by step; -1: bad row
  const float* confidence;        // [B, G, K]
  const int32_t* keep;            // [B] 0 nothing, 1 by confidence, 2 all of the surviving branch; nullptr: 1
  float epsilon;
  int64_t* tokens;                // in/out [B, T] committed tokens
  int32_t* length;                // in/out [B] how many, at least 2
  int32_t* chain;                 // in/out [B, G] verified chain, then the next one, 0 behind its end
  int32_t* chain_length;          // in/out [B]
  int32_t* commit_slots;          // out [B, G] what `kv_commit` moves in the draft's cache: slots of nodes that lie at
  int32_t* commit_start;          // out [B]    branch point + step * K + branch
  int32_t* commit_length;         // out [B]
  int64_t* target_inputs;         // out [B, G+1] X's last token, the next chain
  int64_t* draft_inputs;          // out [B, 2] the last two tokens of X + chain
  int32_t* target_prefix;         // out [B] slots of the target's cache before them
  int32_t* branch_point;          // out [B] length of X + chain
  int64_t* round;                 // in/out [1] counts up
  int32_t* report;                // out [R, B, 6 + G]: accepted (-1: bad row), verified, survivor, next token, kept,
                                  // branches, chain as it was verified; row round % R
};

// How long stretches of work on a stream take together; see stopwatch/stopwatch.cuh.
struct StopwatchParams {
  int64_t* times;  // in/out [2] nanoseconds: the sum of all stretches; when the present one began
  bool start;      // a stretch begins, else it ends
};

// Several steps of a decoder in one call, each drawing the tokens that the next one reads. Step 0 runs `inputs` tokens and
// draws from the last `branches` of them; every later step runs one token a branch.
// branches = 1: the tokens are a chain behind the prefix. branches > 1 (inputs = branches): each is a branch of its own
// that sees the prefix and itself; step s of branch r lies in slot prefix + s * branches + r.
struct DraftSequence {
  int64_t S;
  void* cache;               // [L, 2, 1, Hkv, S, D]
  int64_t inputs, branches, steps, R;  // R >= branches: rows a step has in the outputs
  int32_t prefix;            // slots 0..prefix-1 hold it; the first input has this position, too
  const int64_t* tokens;     // [inputs]
  Draw draw;                 // sampling: as for `sample` and `logit_cutoff`, the same for all rows; lane = branch
  float temperature;
  bool cut;                  // top_k, top_p, min_p are in use
  int32_t top_k;
  float top_p, min_p;
  int64_t seed, position;    // position of the tokens that step 0 draws
  float stop_below;          // ends after the step by which every branch has met a lower confidence
  void* logits;              // out [steps, R, V], the model's dtype: what step s drew from
  float* cutoff;             // out [steps, R], if cut
  int32_t* drawn;            // out [steps, R]; -1: bad row (and the last step)
  float* confidence;         // out [steps, R]: max probability
  int64_t* num_steps;        // out [1]
};
struct DraftParams {
  ForwardParams model;              // weights; what varies with the tokens is filled in by the op
  int64_t B;
  const DraftSequence* sequences;   // [B]: those that go on share each step's forward
};

// ---------------------------------------------------------------------------------------------- one run() per backend
namespace cpu {
void logit_cutoff(const LogitCutoffParams&);
void sample(const SampleParams&);
void branch_topk(const BranchTopkParams&);
void verify(const VerifyParams&);
void verify_tree(const VerifyTreeParams&);
void tree_mask(const TreeMaskParams&);
void tree_attention(const TreeAttentionParams&);
void kv_write(const KvWriteParams&);
void kv_commit(const KvCommitParams&);
void rope_kv_write(const RopeKvWriteParams&);
void add_rms_norm(const AddRmsNormParams&);
void silu_mul(const SiluMulParams&);
void linear(const LinearParams&);
void decoder(const DecoderParams&);
void forward(const ForwardParams&);
void draft(const DraftParams&);
void advance(const AdvanceParams&);
void stopwatch(const StopwatchParams&);
}  // namespace cpu

// The CUDA kernels, compiled by nvcc (cuda) and, the same source, by g++ against simt/simt.h (simt).
namespace cuda {
void branch_topk(const BranchTopkParams&, void* stream);
void logit_cutoff(const LogitCutoffParams&, void* stream);
void advance(const AdvanceParams&, void* stream);
void stopwatch(const StopwatchParams&, void* stream);
void add_rms_norm(const AddRmsNormParams&, void* stream);
void silu_mul(const SiluMulParams&, void* stream);
void kv_commit(const KvCommitParams&, void* stream);
void kv_write(const KvWriteParams&, void* stream);
void rope_kv_write(const RopeKvWriteParams&, void* stream);
void tree_attention(const TreeAttentionParams&, void* stream);
void tree_mask(const TreeMaskParams&, void* stream);
void sample(const SampleParams&, void* stream);
void verify(const VerifyParams&, void* stream);
void verify_tree(const VerifyTreeParams&, void* stream);
}  // namespace cuda
namespace simt {
// In which order the emulated threads run.
enum class Order : int32_t { kForward, kReverse, kRandom };
void branch_topk(const BranchTopkParams&, Order);
void logit_cutoff(const LogitCutoffParams&, Order);
void advance(const AdvanceParams&, Order);
void stopwatch(const StopwatchParams&, Order);
void add_rms_norm(const AddRmsNormParams&, Order);
void silu_mul(const SiluMulParams&, Order);
void kv_commit(const KvCommitParams&, Order);
void kv_write(const KvWriteParams&, Order);
void rope_kv_write(const RopeKvWriteParams&, Order);
void tree_attention(const TreeAttentionParams&, Order);
void tree_mask(const TreeMaskParams&, Order);
void sample(const SampleParams&, Order);
void verify(const VerifyParams&, Order);
void verify_tree(const VerifyTreeParams&, Order);
}  // namespace simt

}  // namespace specbranch
