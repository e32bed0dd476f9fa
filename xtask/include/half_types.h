/* mlx/c/half.h declares these on Arm only; every platform has the functions
   (see vendor/mlx-sys/cmake/mlxc_compat.h). bindgen makes a newtype of
   __fp16 and a plain u16 of a 16-bit integer, which is what mlx-rs expects. */
#pragma once
#define HAS_FLOAT16
typedef __fp16 float16_t;
#define HAS_BFLOAT16
typedef unsigned short bfloat16_t;
