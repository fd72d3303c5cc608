// What the native half says of a step as it goes, by the knob `log` (Python:
// runtime/logs.py).
#ifndef TERRA_KERNELS_PYTHON_LAMP_H_
#define TERRA_KERNELS_PYTHON_LAMP_H_

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace terra {

// The categories of the knob that this half knows, as bits.
enum class Light : unsigned { kCursor = 1, kReplay = 2, kCommits = 4 };

// By the number of their bit. Python has them from here.
inline constexpr std::array<const char*, 3> kLightNames = {"cursor", "replay",
                                                           "commits"};

// Invariant: lines are kept, in order, until Python takes them. Logging is
// Python, the user's too, which may not run where most lines are said.
class Lamp {
 public:
  using Line = std::pair<Light, std::string>;

  explicit Lamp(unsigned lights) : lights_(lights) {}

  bool is_on() const { return lights_ != 0; }
  bool IsOn(Light light) const {
    return (lights_ & static_cast<unsigned>(light)) != 0;
  }
  // Who says what takes long to find out asks before whether it is on.
  template <typename... Parts>
  void Say(Light light, const Parts&... parts) {
    if (IsOn(light)) lines_.emplace_back(light, absl::StrCat(parts...));
  }
  bool has_lines() const { return !lines_.empty(); }
  std::vector<Line> Take() { return std::exchange(lines_, {}); }

 private:
  const unsigned lights_;
  std::vector<Line> lines_;
};

}  // namespace terra

#endif  // TERRA_KERNELS_PYTHON_LAMP_H_
