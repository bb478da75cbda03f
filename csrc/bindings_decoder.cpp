// The decoder: weights are checked and kept once, a forward passes what changes.
#include <pybind11/stl.h>

#include <list>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"
#include "bindings_checks.h"
#include "common/element.h"
#include "common/tensor_arg.h"
#include "ops.h"

namespace py = pybind11;

namespace specbranch {
namespace {

// Arguments whose memory a call reads or writes: they stay until its end, since what an object exports may be a copy
// that only the export keeps alive. To be destroyed with the interpreter lock held.
using Held = std::list<TensorArg>;

// The memory of an argument of a batch.
struct Range {
  const char *begin, *end;
};

Range range_of(const void* data, int64_t bytes) {
  const char* begin = static_cast<const char*>(data);
  return {begin, begin + bytes};
}

// Refuses memory that two sequences would write.
void check_apart(const char* what, const std::vector<Range>& ranges) {
  const Range& last = ranges.back();
  for (size_t i = 0; i + 1 < ranges.size(); ++i) {
    if (ranges[i].begin < last.end && last.begin < ranges[i].end) {
      throw py::value_error(std::string("had the same ") + what + " as sequences[" + std::to_string(i) +
                            "], must have its own");
    }
  }
}

// Calls `take(tuple)` for each of the sequences, whose errors then say which it was.
template <typename Take>
void for_each_sequence(const py::tuple& sequences, size_t size, Take take) {
  for (size_t i = 0; i < sequences.size(); ++i) {
    const std::string name = "sequences[" + std::to_string(i) + "]";
    const py::handle item = sequences[i];
    // A list could be changed by another thread while its tensors are in use.
    if (!py::isinstance<py::tuple>(item) || py::len(item) != size) {
      throw py::type_error(name + " was " + Py_TYPE(item.ptr())->tp_name + ", must be a tuple of " +
                           std::to_string(size));
    }
    try {
      take(py::reinterpret_borrow<py::tuple>(item));
    } catch (const py::value_error& error) {
      throw py::value_error(name + ": " + error.what());
    } catch (const py::type_error& error) {
      throw py::type_error(name + ": " + error.what());
    } catch (const py::cast_error&) {
      throw py::type_error(name + " had an entry of another type than its field");
    }
  }
}

class Decoder {
 public:
  // layers: tuples (input_norm, qkv, qkv_bias, q_norm, k_norm, out, out_bias, mlp_norm, gate_up, gate_up_bias, down,
  // down_bias).
  Decoder(const py::list& layers, py::handle final_norm, py::handle cos, py::handle sin, int64_t Hq, int64_t Hkv,
          int64_t D, int64_t F, float eps) {
    TensorArg norm("final_norm", final_norm, kFloating, "[d]");
    type_ = norm.type();
    p_.dtype = norm.dtype();
    p_.width = norm.size(0);
    p_.L = static_cast<int64_t>(layers.size()), p_.Hq = Hq, p_.Hkv = Hkv, p_.D = D, p_.F = F, p_.eps = eps;
    if (Hkv < 1 || Hq % Hkv != 0) throw py::value_error("num_q_heads must be a multiple of num_kv_heads");
    p_.final_norm = keep(final_norm, norm);
    TensorArg cos_table("cos_table", cos, kFloat32, "[P, D / 2]"), sin_table("sin_table", sin, kFloat32, "[P, D / 2]");
    p_.P = cos_table.size(0);
    cos_table.sizes({p_.P, D / 2});
    sin_table.sizes({p_.P, D / 2});
    p_.cos_table = static_cast<const float*>(keep(cos, cos_table));
    p_.sin_table = static_cast<const float*>(keep(sin, sin_table));
    for (const py::handle& item : layers) layers_.push_back(layer(item.cast<py::tuple>()));
    p_.layers = layers_.data();
  }

  void forward(py::handle residual_, py::handle cache_, py::handle positions_, py::handle slots_, py::handle prefix_,
               py::handle bits_, float scale, py::handle hidden_, py::handle out_) const {
    DecoderParams p = p_;
    TensorArg residual("residual", residual_, type_, "[N, d]", kWritable);
    TensorArg out("out", out_, type_, "[N, d]", kWritable);
    p.N = residual.size(0), p.scale = scale;
    residual.sizes({p.N, p.width});
    out.sizes({p.N, p.width});
    Held held;
    const DecoderSequence sequence = place(held, p.N, cache_, positions_, slots_, prefix_, bits_);
    p.B = 1, p.sequences = &sequence;
    take_hidden(held, p, hidden_);
    p.residual = residual.data(), p.out = out.data();
    py::gil_scoped_release release;
    cpu::decoder(p);
  }

  // Its memory, and S.
  std::pair<void*, int64_t> take_cache(Held& held, py::handle cache_) const {
    const TensorArg& cache = held.emplace_back("cache", cache_, type_, "[L, 2, 1, Hkv, S, D]", kWritable);
    cache.sizes({p_.L, 2, 1, p_.Hkv, cache.size(4), p_.D});
    return {cache.data(), cache.size(4)};
  }

  Range cache_range(const void* cache, int64_t S) const {
    return range_of(cache, p_.L * 2 * p_.Hkv * S * p_.D * element_size(p_.dtype));
  }

  // Where hidden states of p.N tokens are wanted.
  void take_hidden(Held& held, DecoderParams& p, py::handle hidden_) const {
    const TensorArg& hidden = held.emplace_back("hidden", hidden_, type_, "[N, K, d]", kOptional | kWritable);
    p.K = hidden.given() ? hidden.size(1) : 0, p.hidden = hidden.data();
    hidden.sizes({p.N, p.K, p.width});
    if (p.K > p.L) hidden.fail_value("had more layers than the " + std::to_string(p.L) + " of the decoder");
  }

  // Where N tokens of a sequence go, and what they see.
  DecoderSequence place(Held& held, int64_t N, py::handle cache_, py::handle positions_, py::handle slots_,
                        py::handle prefix_, py::handle bits_) const {
    const TensorArg& positions = held.emplace_back("positions", positions_, kInt32, "[1, N]");
    const TensorArg& slots = held.emplace_back("slots", slots_, kInt32, "[1, N]");
    const TensorArg& prefix = held.emplace_back("prefix_length", prefix_, kInt32, "[1]");
    const TensorArg& bits =
        held.emplace_back("ancestor_bits", bits_, kInt32 | kUInt32, "[1, N, ceil(T / 32)]", kOptional);
    const auto [cache, S] = take_cache(held, cache_);
    const int64_t W = bits.given() ? bits.size(2) : 0;
    positions.sizes({1, N});
    slots.sizes({1, N});
    prefix.sizes({1});
    bits.sizes({1, N, W});
    check_positions(positions, p_.P);
    check_slots(slots, S);
    check_prefix(prefix, N, S);
    if (bits.given()) check_bits(bits, prefix, S);
    return {N,
            S,
            W,
            cache,
            positions.data<int32_t>(),
            slots.data<int32_t>(),
            prefix.data<int32_t>(),
            bits.data<uint32_t>()};
  }

  const DecoderParams& params() const { return p_; }
  Types type() const { return type_; }

 private:
  // The memory of a tensor that lives as long as this object.
  const void* keep(py::handle object, const TensorArg& tensor) {
    if (tensor.given()) kept_.push_back(py::reinterpret_borrow<py::object>(object));
    return tensor.data();
  }

  const void* vector(const char* name, py::handle object, int64_t size) {
    TensorArg tensor(name, object, type_, "[n]", kOptional);
    tensor.sizes({size});
    return keep(object, tensor);
  }

  DecoderLinear matrix(const char* name, py::handle weight_, py::handle bias, int64_t inputs, int64_t outputs) {
    TensorArg weight(name, weight_, kWeights, kPackedShape);
    check_weight(weight, inputs, outputs);
    return {weight.dtype(), keep(weight_, weight), vector(name, bias, outputs)};
  }

  DecoderLayer layer(const py::tuple& w) {
    const int64_t d = p_.width, queries = p_.Hq * p_.D, heads = queries + 2 * p_.Hkv * p_.D;
    if (w.size() != 12) throw py::value_error("layers had a tuple of another length than 12");
    return {vector("input_norm", w[0], d),
            matrix("qkv", w[1], w[2], d, heads),
            vector("q_norm", w[3], p_.D),
            vector("k_norm", w[4], p_.D),
            matrix("out", w[5], w[6], queries, d),
            vector("mlp_norm", w[7], d),
            matrix("gate_up", w[8], w[9], d, 2 * p_.F),
            matrix("down", w[10], w[11], p_.F, d)};
  }

  DecoderParams p_{};
  Types type_;
  std::vector<DecoderLayer> layers_;
  std::vector<py::object> kept_;
};

// A decoder with its embedding and head: from tokens to logits, and several steps by itself.
class Drafter {
 public:
  Drafter(const Decoder& decoder, py::handle embedding_, py::handle head_, py::handle bias_, float scale)
      : decoder_(decoder) {
    model_.decoder = decoder.params();
    model_.decoder.scale = scale;
    TensorArg embedding("embedding", embedding_, decoder.type(), "[V, d]");
    TensorArg head("head", head_, kWeights, kPackedShape);
    TensorArg bias("head_bias", bias_, decoder.type(), "[V]", kOptional);
    model_.V = embedding.size(0);
    embedding.sizes({model_.V, model_.decoder.width});
    check_weight(head, model_.decoder.width, model_.V);
    bias.sizes({model_.V});
    model_.embedding = embedding.data();
    model_.head = {head.dtype(), head.data(), bias.data()};
    type_ = decoder.type();
    for (const py::handle object : {embedding_, head_, bias_}) {
      kept_.push_back(py::reinterpret_borrow<py::object>(object));
    }
  }

  void forward(py::handle cache, py::handle tokens, py::handle positions, py::handle slots, py::handle prefix,
               py::handle bits, py::handle hidden, py::handle out) const {
    TensorArg given("tokens", tokens, kInt64, "[N]");
    Held held;
    const std::vector<DecoderSequence> places{
        decoder_.place(held, given.size(0), cache, positions, slots, prefix, bits)};
    run(held, places, given, hidden, out);
  }

  // sequences: tuples (cache, positions, slots, prefix_length, ancestor_bits); their tokens one after the other.
  void forward_batch(const py::list& sequences, py::handle tokens, py::handle hidden, py::handle out) const {
    TensorArg given("tokens", tokens, kInt64, "[N]");
    const py::tuple kept(sequences);
    Held held;
    std::vector<DecoderSequence> places;
    std::vector<Range> caches;
    for_each_sequence(kept, 5, [&](const py::tuple& s) {
      const int64_t N = TensorArg("slots", s[2], kInt32, "[1, N]").size(1);
      places.push_back(decoder_.place(held, N, s[0], s[1], s[2], s[3], s[4]));
      caches.push_back(decoder_.cache_range(places.back().cache, places.back().S));
      check_apart("cache", caches);
    });
    run(held, places, given, hidden, out);
  }

  // Returns how many steps were taken.
  int64_t draft(py::handle cache, py::handle tokens, int32_t prefix, int64_t branches, int64_t steps, bool gumbel,
                float temperature, int32_t top_k, float top_p, float min_p, int64_t seed, int64_t position,
                float stop_below, py::handle logits, py::handle cutoff, py::handle drawn, py::handle confidence) const {
    int64_t taken = 0;
    Held held;
    draft_all({drafting(held, cache, tokens, prefix, branches, steps, gumbel, temperature, top_k, top_p, min_p, seed,
                        position, stop_below, logits, cutoff, drawn, confidence, &taken)});
    return taken;
  }

  // sequences: tuples of the arguments of `draft`. Returns how many steps each has taken.
  std::vector<int64_t> draft_batch(const py::list& sequences) const {
    using Arguments = std::tuple<py::object, py::object, int32_t, int64_t, int64_t, bool, float, int32_t, float, float,
                                 int64_t, int64_t, float, py::object, py::object, py::object, py::object>;
    const py::tuple kept(sequences);
    Held held;
    std::vector<int64_t> taken(kept.size(), 0);
    std::vector<DraftSequence> all;
    std::vector<Range> caches, outputs;
    for_each_sequence(kept, std::tuple_size_v<Arguments>, [&](const py::tuple& sequence) {
      int64_t* steps = &taken[all.size()];
      const auto one = [&](const auto&... arguments) { return drafting(held, arguments..., steps); };
      const DraftSequence& made = all.emplace_back(std::apply(one, sequence.cast<Arguments>()));
      caches.push_back(decoder_.cache_range(made.cache, made.S));
      check_apart("cache", caches);
      outputs.push_back(range_of(made.logits, made.steps * made.R * model_.V * element_size(model_.decoder.dtype)));
      check_apart("out logits", outputs);
    });
    draft_all(all);
    return taken;
  }

 private:
  void run(Held& held, const std::vector<DecoderSequence>& sequences, const TensorArg& tokens, py::handle hidden,
           py::handle out_) const {
    ForwardParams p = model_;
    TensorArg out("out", out_, type_, "[N, V]", kWritable);
    p.decoder.B = static_cast<int64_t>(sequences.size()), p.decoder.sequences = sequences.data();
    for (const DecoderSequence& s : sequences) p.decoder.N += s.N;
    tokens.sizes({p.decoder.N});
    out.sizes({p.decoder.N, p.V});
    decoder_.take_hidden(held, p.decoder, hidden);
    check_ids(p.V, tokens);
    p.tokens = tokens.data<int64_t>(), p.logits = out.data();
    if (p.decoder.N == 0) return;
    py::gil_scoped_release release;
    cpu::forward(p);
  }

  DraftSequence drafting(Held& held, py::handle cache, py::handle tokens_, int32_t prefix, int64_t branches,
                         int64_t steps, bool gumbel, float temperature, int32_t top_k, float top_p, float min_p,
                         int64_t seed, int64_t position, float stop_below, py::handle logits_, py::handle cutoff_,
                         py::handle drawn_, py::handle confidence_, int64_t* taken) const {
    DraftSequence p{};
    std::tie(p.cache, p.S) = decoder_.take_cache(held, cache);
    const TensorArg& tokens = held.emplace_back("tokens", tokens_, kInt64, "[n]");
    const TensorArg& logits = held.emplace_back("out logits", logits_, type_, "[steps, R, V]", kWritable);
    const TensorArg& cutoff = held.emplace_back("out cutoff", cutoff_, kFloat32, "[steps, R]", kWritable);
    const TensorArg& drawn = held.emplace_back("out tokens", drawn_, kInt32, "[steps, R]", kWritable);
    const TensorArg& confidence = held.emplace_back("out confidence", confidence_, kFloat32, "[steps, R]", kWritable);
    p.inputs = tokens.size(0), p.branches = branches, p.steps = steps, p.R = logits.size(1), p.prefix = prefix;
    logits.sizes({logits.size(0), p.R, model_.V});
    for (const TensorArg* arg : {&cutoff, &drawn, &confidence}) arg->sizes({logits.size(0), p.R});
    check(p, tokens, logits);
    p.tokens = tokens.data<int64_t>();
    p.draw = gumbel ? Draw::kGumbel : Draw::kInverseCdf;
    p.temperature = temperature, p.top_k = top_k, p.top_p = top_p, p.min_p = min_p;
    p.cut = top_k > 0 || top_p < 1.0f || min_p > 0.0f;
    p.seed = seed, p.position = position, p.stop_below = stop_below;
    p.logits = logits.data(), p.cutoff = cutoff.data<float>(), p.drawn = drawn.data<int32_t>();
    p.confidence = confidence.data<float>(), p.num_steps = taken;
    return p;
  }

  void draft_all(const std::vector<DraftSequence>& sequences) const {
    const DraftParams p{model_, static_cast<int64_t>(sequences.size()), sequences.data()};
    py::gil_scoped_release release;
    cpu::draft(p);
  }

  static void check_ids(int64_t vocab, const TensorArg& tokens) {
    for (int64_t i = 0; i < tokens.size(0); ++i) {
      const int64_t token = tokens.data<int64_t>()[i];
      if (token >= 0 && token < vocab) continue;
      tokens.fail_value("had " + std::to_string(token) + " at [" + std::to_string(i) + "], must be in 0.." +
                        std::to_string(vocab - 1));
    }
  }

  void check(const DraftSequence& p, const TensorArg& tokens, const TensorArg& logits) const {
    if (p.inputs < 1 || p.branches < 1 || (p.branches > 1 && p.branches != p.inputs)) {
      tokens.fail_value("had " + std::to_string(p.inputs) + " entries for " + std::to_string(p.branches) +
                        " branches, must have one a branch (or any number, at least 1, for one branch)");
    }
    if (p.steps < 0 || p.steps > logits.size(0) || p.branches > p.R) {
      logits.fail_value("had no room for " + std::to_string(p.steps) + " steps of " + std::to_string(p.branches));
    }
    check_ids(model_.V, tokens);
    const DecoderParams& decoder = model_.decoder;
    const int64_t last = p.branches == 1 ? p.inputs + p.steps - 1 : p.branches * p.steps;
    if (p.prefix < 0 || p.prefix + last > p.S || p.prefix + p.inputs / p.branches + p.steps > decoder.P + 1) {
      tokens.fail_value("would reach slot " + std::to_string(p.prefix + last - 1) + ", must fit into " +
                        std::to_string(p.S) + " slots and " + std::to_string(decoder.P) + " positions");
    }
  }

  const Decoder& decoder_;
  ForwardParams model_{};
  Types type_;
  std::vector<py::object> kept_;
};

}  // namespace

void register_decoder(py::module_& m) {
  py::class_<Decoder>(m, "Decoder")
      .def(py::init<const py::list&, py::handle, py::handle, py::handle, int64_t, int64_t, int64_t, int64_t, float>())
      .def("forward", &Decoder::forward);
  py::class_<Drafter>(m, "Drafter")
      .def(py::init<const Decoder&, py::handle, py::handle, py::handle, float>(), py::keep_alive<1, 2>())
      .def("forward", &Drafter::forward)
      .def("forward_batch", &Drafter::forward_batch)
      .def("draft", &Drafter::draft)
      .def("draft_batch", &Drafter::draft_batch);
}

}  // namespace specbranch
