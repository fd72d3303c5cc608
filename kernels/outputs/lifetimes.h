// How long the outputs of a traced step are held by anybody but the session.
#ifndef TERRA_KERNELS_OUTPUTS_LIFETIMES_H_
#define TERRA_KERNELS_OUTPUTS_LIFETIMES_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

namespace terra {

struct Made;

// An output that somebody still held when op `until` was about to run, which
// may be the last op, and not when a later one was.
struct Lifetime {
  int node;
  int output;
  int until;
};

// Looks at the living outputs before every op of a trace. Where very many are
// alive, it looks before every few ops, and takes those that are gone to have
// lived until the last of them. Guarded by the GIL.
class Lifetimes {
 public:
  // Op `index` of the trace is about to run; `made` has only grown since.
  void Look(const std::deque<Made>& made, int index);
  // The trace has ended, after `num_ops` ops. What is still held, or has been
  // let go since the last op, has lived until that.
  std::vector<Lifetime> AtEnd(const std::deque<Made>& made, int num_ops) const;

 private:
  struct Living {
    int made;
    bool was_seen;  // alive, before some op
  };

  std::vector<Living> living_;
  size_t num_known_ = 0;  // of `made`
  size_t credit_ = 0;     // how many outputs may be looked at
  std::vector<Lifetime> ended_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_OUTPUTS_LIFETIMES_H_
