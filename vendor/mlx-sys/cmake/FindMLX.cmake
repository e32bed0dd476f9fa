# mlx-c asks for MLX by find_package; the top CMakeLists.txt has already made
# the target, without the CUDA toolkit that MLX's own package file asks for.
if(TARGET mlx)
  set(MLX_FOUND TRUE)
endif()
