// Bindings of the sampling and verification ops. The pattern is explained in common/tensor_arg.h. All values are
// checked before a kernel runs: a kernel may rely on every comment of ops.h.
#include <limits>
#include <string>

#include "bindings.h"
#include "common/backend.h"
#include "common/tensor_arg.h"
#include "ops.h"
#include "verify/verify_plan.h"

namespace py = pybind11;

namespace specbranch {

void register_probes(py::module_& m);  // bindings_probe.cpp

namespace {

// Rough cost of reading logits, for the decision about the GIL.
double microseconds(int64_t num_logits) { return static_cast<double>(num_logits) / 2000.0; }

std::string text(double value) {
  std::string digits = std::to_string(value);
  return value == static_cast<int64_t>(value) ? std::to_string(static_cast<int64_t>(value)) : digits;
}

template <class T>
void check_range(const TensorArg& arg, double low, double high, const std::string& must) {
  if (!arg.given()) return;
  const T* values = arg.data<T>();
  for (int64_t i = 0; i < arg.numel(); ++i) {
    const double value = static_cast<double>(values[i]);
    if (value >= low && value <= high) continue;  // false for NaN
    arg.fail_value("had " + text(value) + " at flat index " + std::to_string(i) + ", must be " + must);
  }
}

void check_temperature(const TensorArg& arg) {
  check_range<float>(arg, 0.0, std::numeric_limits<float>::max(), "finite and >= 0");
}

void check_vocabulary(const TensorArg& logits, int64_t V) {
  if (V < 1) logits.fail_value("had an empty vocabulary, must have V >= 1");
}

// The first counts[b] entries of each row must be token ids.
void check_tokens(const TensorArg& tokens, const int32_t* counts, int64_t B, int64_t width, int64_t V) {
  const int32_t* values = tokens.data<int32_t>();
  for (int64_t b = 0; b < B; ++b)
    for (int64_t i = 0; i < counts[b]; ++i) {
      const int32_t token = values[b * width + i];
      if (token >= 0 && token < V) continue;
      tokens.fail_value("had " + std::to_string(token) + " at [" + std::to_string(b) + ", " + std::to_string(i) +
                        "], must be a token id in 0.." + std::to_string(V - 1));
    }
}

std::string range_text(int64_t high) { return "in 0.." + std::to_string(high); }

Logits logits_2d(const TensorArg& arg) {
  return {arg.data(), arg.given() ? arg.dtype() : DType::kFloat32, arg.given() ? arg.stride(0) : 0, 0};
}

Logits logits_3d(const TensorArg& arg) {
  if (!arg.given()) return {nullptr, DType::kFloat32, 0, 0};
  return {arg.data(), arg.dtype(), arg.stride(0), arg.stride(1)};
}

void logit_cutoff(py::handle logits_, py::handle temperature_, py::handle top_k_, py::handle top_p_, py::handle min_p_,
                  py::handle cutoff_, py::handle backend_, py::handle stream_) {
  TensorArg logits("logits", logits_, kFloating, "[B, V]", kStrided | kAnyDevice);
  TensorArg temperature("temperature", temperature_, kFloat32, "[B]", kAnyDevice);
  TensorArg top_k("top_k", top_k_, kInt32, "[B]", kAnyDevice);
  TensorArg top_p("top_p", top_p_, kFloat32, "[B]", kAnyDevice);
  TensorArg min_p("min_p", min_p_, kFloat32, "[B]", kAnyDevice);
  TensorArg cutoff("out", cutoff_, kFloat32, "[B]", kWritable | kAnyDevice);
  const int64_t B = logits.size(0), V = logits.size(1);
  check_vocabulary(logits, V);
  for (const TensorArg* arg : {&temperature, &top_k, &top_p, &min_p, &cutoff}) arg->sizes({B});
  const Backend backend(backend_, stream_, {&logits, &temperature, &top_k, &top_p, &min_p, &cutoff});
  if (backend.on_cpu()) {
    check_temperature(temperature);
    check_range<int32_t>(top_k, 0, 2147483647, ">= 0 (0: off)");
    check_range<float>(top_p, std::numeric_limits<float>::denorm_min(), 1, "in (0, 1]");
    check_range<float>(min_p, 0, 1, "in [0, 1]");
  }
  LogitCutoffParams params{B,
                           V,
                           logits_2d(logits),
                           temperature.data<float>(),
                           top_k.data<int32_t>(),
                           top_p.data<float>(),
                           min_p.data<float>(),
                           cutoff.data<float>()};
  backend.run(microseconds(B * V), params, SB_BACKENDS(logit_cutoff));
}

void sample(py::handle logits_, py::handle temperature_, py::handle seed_, py::handle position_, py::handle cutoff_,
            py::handle lane_, bool gumbel, int32_t purpose, py::handle token_, py::handle probability_,
            py::handle max_probability_, py::handle entropy_, py::handle backend_, py::handle stream_) {
  TensorArg logits("logits", logits_, kFloating, "[B, V]", kStrided | kAnyDevice);
  TensorArg temperature("temperature", temperature_, kFloat32, "[B]", kAnyDevice);
  TensorArg seed("seed", seed_, kInt64, "[B]", kAnyDevice);
  TensorArg position("position", position_, kInt64, "[B]", kAnyDevice);
  TensorArg cutoff("cutoff", cutoff_, kFloat32, "[B]", kOptional | kAnyDevice);
  TensorArg lane("lane", lane_, kInt32, "[B]", kOptional | kAnyDevice);
  TensorArg token("out.token", token_, kInt32, "[B]", kWritable | kAnyDevice);
  TensorArg probability("out.probability", probability_, kFloat32, "[B]", kWritable | kAnyDevice);
  TensorArg max_probability("out.max_probability", max_probability_, kFloat32, "[B]", kWritable | kAnyDevice);
  TensorArg entropy("out.entropy", entropy_, kFloat32, "[B]", kWritable | kAnyDevice);
  const int64_t B = logits.size(0), V = logits.size(1);
  check_vocabulary(logits, V);
  for (const TensorArg* arg :
       {&temperature, &seed, &position, &cutoff, &lane, &token, &probability, &max_probability, &entropy})
    arg->sizes({B});
  const Backend backend(
      backend_, stream_,
      {&logits, &temperature, &seed, &position, &cutoff, &lane, &token, &probability, &max_probability, &entropy});
  if (backend.on_cpu()) check_temperature(temperature);
  SampleParams params{B,
                      V,
                      gumbel ? Draw::kGumbel : Draw::kInverseCdf,
                      logits_2d(logits),
                      temperature.data<float>(),
                      cutoff.data<float>(),
                      seed.data<int64_t>(),
                      position.data<int64_t>(),
                      lane.data<int32_t>(),
                      purpose,
                      token.data<int32_t>(),
                      probability.data<float>(),
                      max_probability.data<float>(),
                      entropy.data<float>()};
  backend.run(microseconds(B * V), params, SB_BACKENDS(sample));
}

void branch_topk(py::handle logits_, py::handle temperature_, py::handle cutoff_, py::handle seed_,
                 py::handle position_, bool gumbel, py::handle candidates_, py::handle num_branches_,
                 py::handle confidence_, py::handle backend_, py::handle stream_) {
  TensorArg logits("logits", logits_, kFloating, "[B, V]", kStrided | kAnyDevice);
  TensorArg temperature("temperature", temperature_, kFloat32, "[B]", kAnyDevice);
  TensorArg cutoff("cutoff", cutoff_, kFloat32, "[B]", kOptional | kAnyDevice);
  TensorArg seed("seed", seed_, kInt64, "[B]", (gumbel ? 0 : kOptional) | kAnyDevice);
  TensorArg position("position", position_, kInt64, "[B]", (gumbel ? 0 : kOptional) | kAnyDevice);
  TensorArg candidates("out.candidates", candidates_, kInt32, "[B, K]", kWritable | kAnyDevice);
  TensorArg num_branches("out.num_branches", num_branches_, kInt32, "[B]", kWritable | kAnyDevice);
  TensorArg confidence("out.confidence", confidence_, kFloat32, "[B]", kWritable | kAnyDevice);
  const int64_t B = logits.size(0), V = logits.size(1), K = candidates.size(1);
  check_vocabulary(logits, V);
  for (const TensorArg* arg : {&temperature, &cutoff, &seed, &position, &num_branches, &confidence}) arg->sizes({B});
  candidates.sizes({B, K});
  const Backend backend(backend_, stream_,
                        {&logits, &temperature, &cutoff, &seed, &position, &candidates, &num_branches, &confidence});
  if (backend.on_cpu()) check_temperature(temperature);
  BranchTopkParams params{B,
                          V,
                          K,
                          gumbel ? Draw::kGumbel : Draw::kInverseCdf,
                          logits_2d(logits),
                          temperature.data<float>(),
                          cutoff.data<float>(),
                          seed.data<int64_t>(),
                          position.data<int64_t>(),
                          candidates.data<int32_t>(),
                          num_branches.data<int32_t>(),
                          confidence.data<float>()};
  backend.run(microseconds(B * V), params, SB_BACKENDS(branch_topk));
}

void check_workspace(const TensorArg& workspace, int64_t bytes) {
  const int64_t given = workspace.given() ? workspace.numel() : 0;
  if (given < bytes)
    workspace.fail_value("had " + std::to_string(given) + " bytes, must have at least " + std::to_string(bytes));
  if (reinterpret_cast<uintptr_t>(workspace.data()) % 16 != 0)
    workspace.fail_value("was not aligned, must start at a multiple of 16 bytes");
}

int64_t verify_workspace_bytes(int64_t B, int64_t G, int64_t V, bool gumbel) {
  return plan_verify(B, G, V, gumbel ? Draw::kGumbel : Draw::kInverseCdf).workspace_bytes;
}

void verify(py::handle target_logits_, py::handle draft_logits_, py::handle draft_tokens_, py::handle chain_length_,
            py::handle branch_tokens_, py::handle num_branches_, py::handle temperature_, py::handle seed_,
            py::handle position_, py::handle target_cutoff_, py::handle draft_cutoff_, bool gumbel,
            py::handle num_accepted_, py::handle next_token_, py::handle survivor_, py::handle workspace_,
            py::handle backend_, py::handle stream_) {
  TensorArg target_logits("target_logits", target_logits_, kFloating, "[B, G+1, V]", kStrided | kAnyDevice);
  TensorArg draft_logits("draft_logits", draft_logits_, kFloating, "[B, G, V]", kStrided | kOptional | kAnyDevice);
  TensorArg draft_tokens("draft_tokens", draft_tokens_, kInt32, "[B, G]", kAnyDevice);
  TensorArg chain_length("chain_length", chain_length_, kInt32, "[B]", kAnyDevice);
  TensorArg branch_tokens("branch_tokens", branch_tokens_, kInt32, "[B, K]", kAnyDevice);
  TensorArg num_branches("num_branches", num_branches_, kInt32, "[B]", kAnyDevice);
  TensorArg temperature("temperature", temperature_, kFloat32, "[B]", kAnyDevice);
  TensorArg seed("seed", seed_, kInt64, "[B]", kAnyDevice);
  TensorArg position("position", position_, kInt64, "[B]", kAnyDevice);
  TensorArg target_cutoff("target_cutoff", target_cutoff_, kFloat32, "[B, G+1]", kOptional | kAnyDevice);
  TensorArg draft_cutoff("draft_cutoff", draft_cutoff_, kFloat32, "[B, G]", kOptional | kAnyDevice);
  TensorArg num_accepted("out.num_accepted", num_accepted_, kInt32, "[B]", kWritable | kAnyDevice);
  TensorArg next_token("out.next_token", next_token_, kInt32, "[B]", kWritable | kAnyDevice);
  TensorArg survivor("out.survivor", survivor_, kInt32, "[B]", kWritable | kAnyDevice);
  TensorArg workspace("workspace", workspace_, kUInt8, "[bytes]", kWritable | kOptional | kAnyDevice);
  const int64_t B = target_logits.size(0), V = target_logits.size(2);
  const int64_t G = draft_tokens.size(1), K = branch_tokens.size(1);
  check_vocabulary(target_logits, V);
  target_logits.sizes({B, G + 1, V});
  draft_logits.sizes({B, G, V});
  draft_tokens.sizes({B, G});
  branch_tokens.sizes({B, K});
  target_cutoff.sizes({B, G + 1});
  draft_cutoff.sizes({B, G});
  for (const TensorArg* arg :
       {&chain_length, &num_branches, &temperature, &seed, &position, &num_accepted, &next_token, &survivor})
    arg->sizes({B});
  if (!gumbel && G > 0 && !draft_logits.given())
    draft_logits.fail_value("was None, must be [B, G, V] unless draw is \"gumbel\" or G = 0");
  const Backend backend(
      backend_, stream_,
      {&target_logits, &draft_logits, &draft_tokens, &chain_length, &branch_tokens, &num_branches, &temperature, &seed,
       &position, &target_cutoff, &draft_cutoff, &num_accepted, &next_token, &survivor, &workspace});
  if (backend.on_cpu()) {
    check_temperature(temperature);
    check_range<int32_t>(chain_length, 0, static_cast<double>(G), range_text(G) + " (G)");
    check_range<int32_t>(num_branches, 0, static_cast<double>(K), range_text(K) + " (K)");
    check_tokens(draft_tokens, chain_length.data<int32_t>(), B, G, V);
    check_tokens(branch_tokens, num_branches.data<int32_t>(), B, K, V);
  }
  const Draw draw = gumbel ? Draw::kGumbel : Draw::kInverseCdf;
  if (backend.runs_kernels()) check_workspace(workspace, plan_verify(B, G, V, draw).workspace_bytes);
  VerifyParams params{B,
                      G,
                      V,
                      K,
                      draw,
                      logits_3d(target_logits),
                      logits_3d(draft_logits),
                      draft_tokens.data<int32_t>(),
                      chain_length.data<int32_t>(),
                      branch_tokens.data<int32_t>(),
                      num_branches.data<int32_t>(),
                      temperature.data<float>(),
                      target_cutoff.data<float>(),
                      draft_cutoff.data<float>(),
                      seed.data<int64_t>(),
                      position.data<int64_t>(),
                      num_accepted.data<int32_t>(),
                      next_token.data<int32_t>(),
                      survivor.data<int32_t>(),
                      workspace.data()};
  backend.run(microseconds(B * (2 * G + 1) * V), params, SB_BACKENDS(verify));
}

void check_tree(const TensorArg& parents, const TensorArg& num_nodes, int64_t B, int64_t N) {
  check_range<int32_t>(num_nodes, 0, static_cast<double>(N), range_text(N) + " (N)");
  for (int64_t b = 0; b < B; ++b)
    for (int64_t i = 0; i < num_nodes.data<int32_t>()[b]; ++i) {
      const int32_t parent = parents.data<int32_t>()[b * N + i];
      if (parent >= -1 && parent < i) continue;
      parents.fail_value("had " + std::to_string(parent) + " at [" + std::to_string(b) + ", " + std::to_string(i) +
                         "], must be -1 or the index of an earlier node");
    }
}

// Children of one node must be all sampled or all deterministic: compare each with its nearest earlier sibling.
void check_siblings(const TensorArg& sampled, const int32_t* parents, const int32_t* counts, int64_t B, int64_t N) {
  if (!sampled.given()) return;
  const uint8_t* flags = sampled.data<uint8_t>();
  for (int64_t b = 0; b < B; ++b)
    for (int64_t i = b * N; i < b * N + counts[b]; ++i) {
      int64_t j = i - 1;
      while (j >= b * N && parents[j] != parents[i]) --j;
      if (j < b * N || (flags[j] != 0) == (flags[i] != 0)) continue;
      sampled.fail_value("differed between siblings " + std::to_string(j - b * N) + " and " +
                         std::to_string(i - b * N) + " of batch row " + std::to_string(b) +
                         ", must be the same for all children of a node");
    }
}

int64_t verify_tree_workspace_bytes(int64_t B, int64_t N, int64_t V, bool gumbel) {
  return plan_verify_tree(B, N, V, gumbel ? Draw::kGumbel : Draw::kInverseCdf).workspace_bytes;
}

void verify_tree(py::handle target_logits_, py::handle draft_logits_, py::handle tokens_, py::handle parents_,
                 py::handle num_nodes_, py::handle temperature_, py::handle seed_, py::handle position_,
                 py::handle sampled_, py::handle target_cutoff_, py::handle draft_cutoff_, bool gumbel,
                 py::handle num_accepted_, py::handle path_, py::handle next_token_, py::handle workspace_,
                 py::handle backend_, py::handle stream_) {
  TensorArg target_logits("target_logits", target_logits_, kFloating, "[B, N+1, V]", kStrided | kAnyDevice);
  TensorArg draft_logits("draft_logits", draft_logits_, kFloating, "[B, N+1, V]", kStrided | kOptional | kAnyDevice);
  TensorArg tokens("tokens", tokens_, kInt32, "[B, N]", kAnyDevice);
  TensorArg parents("parents", parents_, kInt32, "[B, N]", kAnyDevice);
  TensorArg num_nodes("num_nodes", num_nodes_, kInt32, "[B]", kAnyDevice);
  TensorArg temperature("temperature", temperature_, kFloat32, "[B]", kAnyDevice);
  TensorArg seed("seed", seed_, kInt64, "[B]", kAnyDevice);
  TensorArg position("position", position_, kInt64, "[B]", kAnyDevice);
  TensorArg sampled("sampled", sampled_, kUInt8 | kBool, "[B, N]", kOptional | kAnyDevice);
  TensorArg target_cutoff("target_cutoff", target_cutoff_, kFloat32, "[B, N+1]", kOptional | kAnyDevice);
  TensorArg draft_cutoff("draft_cutoff", draft_cutoff_, kFloat32, "[B, N+1]", kOptional | kAnyDevice);
  TensorArg num_accepted("out.num_accepted", num_accepted_, kInt32, "[B]", kWritable | kAnyDevice);
  TensorArg path("out.path", path_, kInt32, "[B, N]", kWritable | kAnyDevice);
  TensorArg next_token("out.next_token", next_token_, kInt32, "[B]", kWritable | kAnyDevice);
  TensorArg workspace("workspace", workspace_, kUInt8, "[bytes]", kWritable | kOptional | kAnyDevice);
  const int64_t B = target_logits.size(0), V = target_logits.size(2), N = tokens.size(1);
  check_vocabulary(target_logits, V);
  target_logits.sizes({B, N + 1, V});
  draft_logits.sizes({B, N + 1, V});
  for (const TensorArg* arg : {&tokens, &parents, &sampled, &path}) arg->sizes({B, N});
  for (const TensorArg* arg : {&target_cutoff, &draft_cutoff}) arg->sizes({B, N + 1});
  for (const TensorArg* arg : {&num_nodes, &temperature, &seed, &position, &num_accepted, &next_token}) arg->sizes({B});
  if (!gumbel && N > 0 && sampled.given() && !draft_logits.given())
    draft_logits.fail_value("was None, must be [B, N+1, V] where sampled is given and draw is not \"gumbel\"");
  const Backend backend(backend_, stream_,
                        {&target_logits, &draft_logits, &tokens, &parents, &num_nodes, &temperature, &seed, &position,
                         &sampled, &target_cutoff, &draft_cutoff, &num_accepted, &path, &next_token, &workspace});
  if (backend.on_cpu()) {
    check_temperature(temperature);
    check_tree(parents, num_nodes, B, N);
    check_tokens(tokens, num_nodes.data<int32_t>(), B, N, V);
    check_siblings(sampled, parents.data<int32_t>(), num_nodes.data<int32_t>(), B, N);
  }
  const Draw draw = gumbel ? Draw::kGumbel : Draw::kInverseCdf;
  if (backend.runs_kernels()) check_workspace(workspace, plan_verify_tree(B, N, V, draw).workspace_bytes);
  VerifyTreeParams params{B,
                          N,
                          V,
                          draw,
                          logits_3d(target_logits),
                          logits_3d(draft_logits),
                          tokens.data<int32_t>(),
                          parents.data<int32_t>(),
                          sampled.data<uint8_t>(),
                          num_nodes.data<int32_t>(),
                          temperature.data<float>(),
                          target_cutoff.data<float>(),
                          draft_cutoff.data<float>(),
                          seed.data<int64_t>(),
                          position.data<int64_t>(),
                          num_accepted.data<int32_t>(),
                          path.data<int32_t>(),
                          next_token.data<int32_t>(),
                          workspace.data()};
  backend.run(microseconds(B * (N + 1) * V), params, SB_BACKENDS(verify_tree));
}

}  // namespace

void register_sampling_ops(py::module_& m) {
  m.def("logit_cutoff", &logit_cutoff);
  m.def("sample", &sample);
  m.def("branch_topk", &branch_topk);
  m.def("verify", &verify);
  m.def("verify_workspace_bytes", &verify_workspace_bytes);
  m.def("verify_tree", &verify_tree);
  m.def("verify_tree_workspace_bytes", &verify_tree_workspace_bytes);
  register_probes(m);
}

}  // namespace specbranch
