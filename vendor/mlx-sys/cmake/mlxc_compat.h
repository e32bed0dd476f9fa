// Included before every C++ file of mlx-c; what the platform lacks, and no more.
#pragma once

// mlx/c/half.h declares the 16-bit floats on Arm only, mlx-rs calls their
// accessors everywhere. They are only moved as bits, so an integer will do.
#if !defined(__aarch64__) && !defined(__ARM_FEATURE_FP16_SCALAR_ARITHMETIC)
#define HAS_FLOAT16
typedef unsigned short float16_t;
#endif
#if !defined(__aarch64__) && !defined(__ARM_FEATURE_BF16)
#define HAS_BFLOAT16
typedef unsigned short bfloat16_t;
#endif

// libstdc++ has std::format from GCC 13 on. mlx-c formats numbers and strings
// into error messages with plain `{}` fields, which is all that this does.
// (libc++ had it long before it said so in __cpp_lib_format.)
#include <version>
#if !defined(__GLIBCXX__) || defined(__cpp_lib_format)
#include <format>
#else
#include <sstream>
#include <string>
#include <string_view>

namespace std {
template <typename... Args>
string format(string_view pattern, const Args&... args) {
  ostringstream out;
  auto until_field = [&] {
    auto field = pattern.find("{}");
    out << pattern.substr(0, field);
    pattern.remove_prefix(
        field == string_view::npos ? pattern.size() : field + 2);
  };
  ((until_field(), out << args), ...);
  out << pattern;
  return out.str();
}
} // namespace std
#endif
