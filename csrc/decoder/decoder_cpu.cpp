// All layers of a Llama decoder in one call: the ops of the other folders, one after the other, on raw pointers; and
// with them, the embedding before and the head behind.
//
//   for each layer: x += attention(norm(x)); x += mlp(norm(x));  out = norm(x);  logits = head(out)
//
// Layout: residual [N, d] in and out; cache [L, 2, B, Hkv, S, D] contiguous, B = 1; hidden [N, K, d], the last K
// layers'
//         outputs.
// Why:    not for its arithmetic, which is that of the ops, bit for bit, but because it needs no Python between them:
// two
//         lanes that take turns with the interpreter lock dozens of times a forward do not run at the same time.
// Bound:  the weights' bytes for few tokens.
#include <cstring>
#include <vector>

#include "common/element.h"
#include "ops.h"

namespace specbranch::cpu {
namespace {

// Work space of one thread, grown once.
struct Space {
  std::vector<char> normed, qkv, query, seen, delta, gate_up, inner, residual, out;

  static void* of(std::vector<char>& buffer, int64_t bytes) {
    if (static_cast<int64_t>(buffer.size()) < bytes) buffer.resize(bytes);
    return buffer.data();
  }
};

thread_local Space space;

class Pass {
 public:
  Pass(const DecoderParams& p, Space& space)
      : p_(p),
        bytes_(element_size(p.dtype)),
        normed_(Space::of(space.normed, p.N * p.width * bytes_)),
        qkv_(Space::of(space.qkv, p.N * (p.Hq + 2 * p.Hkv) * p.D * bytes_)),
        query_(Space::of(space.query, p.N * p.Hq * p.D * bytes_)),
        seen_(Space::of(space.seen, p.N * p.Hq * p.D * bytes_)),
        delta_(Space::of(space.delta, p.N * p.width * bytes_)),
        gate_up_(Space::of(space.gate_up, p.N * 2 * p.F * bytes_)),
        inner_(Space::of(space.inner, p.N * p.F * bytes_)) {}

  void run() const {
    for (int64_t layer = 0; layer < p_.L; ++layer) {
      norm(p_.layers[layer].input_norm, layer > 0 ? delta_ : nullptr, normed_);
      if (layer > 0) keep_hidden(layer - 1);
      attend(p_.layers[layer], layer);
      norm(p_.layers[layer].mlp_norm, delta_, normed_);
      feed_forward(p_.layers[layer]);
    }
    norm(p_.final_norm, delta_, p_.out);
    keep_hidden(p_.L - 1);
  }

 private:
  void norm(const void* weight, const void* delta, void* out) const {
    add_rms_norm({p_.N, p_.width, p_.dtype, p_.eps, delta, weight, p_.residual, out});
  }

  void multiply(const DecoderLinear& w, int64_t inputs, int64_t outputs, const void* x, void* out) const {
    linear({p_.N, inputs, outputs, p_.dtype, w.dtype, x, w.weight, w.bias, out});
  }

  void attend(const DecoderLayer& w, int64_t layer) const {
    const int64_t heads = (p_.Hq + 2 * p_.Hkv) * p_.D, per_head = p_.S * p_.D;
    char* data = static_cast<char*>(p_.cache) + layer * 2 * p_.Hkv * per_head * bytes_;
    const CacheLayer cache{data, p_.dtype, p_.Hkv * per_head, p_.Hkv * per_head, per_head, p_.D};
    multiply(w.qkv, p_.width, heads, normed_, qkv_);
    rope_kv_write({1, p_.N, p_.Hq, p_.Hkv, p_.S, p_.D, p_.P, p_.dtype, p_.eps, qkv_, w.q_norm, w.k_norm, p_.cos_table,
                   p_.sin_table, p_.positions, p_.slots, cache, query_});
    tree_attention({1, p_.N, p_.Hq, p_.Hkv, p_.S, p_.D, p_.W, p_.scale, p_.dtype, query_, cache, p_.prefix_length,
                    p_.ancestor_bits, seen_});
    multiply(w.out, p_.Hq * p_.D, p_.width, seen_, delta_);
  }

  void feed_forward(const DecoderLayer& w) const {
    multiply(w.gate_up, p_.width, 2 * p_.F, normed_, gate_up_);
    silu_mul({p_.N, p_.F, p_.dtype, gate_up_, inner_});
    multiply(w.down, p_.F, p_.width, inner_, delta_);
  }

  // The residual now holds the output of `layer`.
  void keep_hidden(int64_t layer) const {
    const int64_t idx = layer - (p_.L - p_.K), row = p_.width * bytes_;
    if (idx < 0) return;
    for (int64_t n = 0; n < p_.N; ++n) {
      std::memcpy(static_cast<char*>(p_.hidden) + (n * p_.K + idx) * row, static_cast<char*>(p_.residual) + n * row,
                  row);
    }
  }

  const DecoderParams& p_;
  int64_t bytes_;
  void *normed_, *qkv_, *query_, *seen_, *delta_, *gate_up_, *inner_;
};

}  // namespace

void decoder(const DecoderParams& p) {
  if (p.N == 0) return;
  Pass(p, space).run();
}

void forward(const ForwardParams& p) {
  DecoderParams d = p.decoder;
  const int64_t row = d.width * element_size(d.dtype);
  d.residual = Space::of(space.residual, d.N * row), d.out = Space::of(space.out, d.N * row);
  const Pass pass(d, space);
  const char* last = static_cast<const char*>(d.out) + (d.N - p.head_rows) * row;
  for (int64_t i = 0; i < d.N; ++i) {
    std::memcpy(static_cast<char*>(d.residual) + i * row, static_cast<const char*>(p.embedding) + p.tokens[i] * row,
                row);
  }
  pass.run();
  linear({p.head_rows, d.width, p.V, d.dtype, p.head.dtype, last, p.head.weight, p.head.bias, p.logits});
}

}  // namespace specbranch::cpu
