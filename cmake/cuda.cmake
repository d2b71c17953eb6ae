# The kernels for NVIDIA GPUs, thermocline_cuda, where there is a CUDA toolkit. Without one the build is complete but
# for them.
set(cuda_found FALSE)
if(NOT THERMOCLINE_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  # Machines with a GPU of any of these run the same program; the last is there as PTX, too, for those to come.
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES "75-real;80-real;86-real;89-real;90-real;120")
  endif()
  find_program(nvcc nvcc HINTS ENV CUDA_PATH PATHS /usr/local/cuda/bin NO_CACHE)
  if(nvcc AND NOT CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_COMPILER "${nvcc}")
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    find_package(CUDAToolkit 12.8)  # the first that knows sm_120
    set(cuda_found ${CUDAToolkit_FOUND})
  endif()
  if(THERMOCLINE_CUDA STREQUAL "ON" AND NOT cuda_found)
    message(FATAL_ERROR "THERMOCLINE_CUDA is ON, and there is no CUDA toolkit of version 12.8 or later.")
  endif()
endif()
if(NOT cuda_found)
  message(STATUS "Without CUDA: this build leaves out the kernels for NVIDIA GPUs (gpu/cuda).")
  return()
endif()

if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc has it
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
endif()
file(GLOB_RECURSE sources CONFIGURE_DEPENDS gpu/cuda/*.cc gpu/cuda/*.cu)
add_library(thermocline_cuda STATIC ${sources})
target_include_directories(thermocline_cuda PUBLIC ${CMAKE_SOURCE_DIR})
target_link_libraries(thermocline_cuda PUBLIC thermocline_models CUDA::cudart_static)
# Constants and formulas of layouts are constexpr functions of plain headers.
target_compile_options(thermocline_cuda PRIVATE
  "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;--threads=0;-Xcompiler=-Wall>")
target_link_libraries(thermocline_gpu PUBLIC thermocline_cuda)
target_compile_definitions(thermocline_gpu PUBLIC THERMOCLINE_CUDA)
