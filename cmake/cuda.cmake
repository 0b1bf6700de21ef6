# Where .cu files go: to nvcc (MOE_CUDA), or to the C++ compiler with cuda_on_cpu/, whose
# headers carry CUDA's names. Nothing here asks for a GPU.
add_library(moe_cuda INTERFACE)
if(MOE_CUDA)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
        set(CMAKE_CUDA_ARCHITECTURES 80 90a)
    endif()
    enable_language(CUDA)
    if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
        # CMake 3.25 does not know that nvcc 13 has C++20.
        set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
        set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    find_package(CUDAToolkit REQUIRED)
    find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
    if(NCCL_INCLUDE_DIR)
        # Its library is opened at run time: distributed/communicators/nccl_library.h.
        set(MOE_NCCL ON)
        add_library(moe_nccl INTERFACE)
        target_include_directories(moe_nccl SYSTEM INTERFACE ${NCCL_INCLUDE_DIR})
    endif()
    moe_part("${MOE_NCCL}" "NCCL" "ranks over several GPUs" "libnccl-dev")
    target_link_libraries(moe_cuda INTERFACE CUDA::cudart_static)
    target_compile_options(moe_cuda INTERFACE
        # A spilled register is an error, and so is any warning; -v is for the table of
        # registers. {fmt} 9 believes that nvcc knows no constexpr. Of the modes of
        # compression only `size` makes machine code smaller, to an eighth; the driver
        # unpacks it when a kernel is loaded.
        "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Xptxas -v,-warn-spills,-Werror>"
        "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Werror all-warnings>"
        $<$<COMPILE_LANGUAGE:CUDA>:--compress-mode=size>
        $<$<COMPILE_LANGUAGE:CUDA>:-DFMT_USE_CONSTEXPR=1>)
else()
    add_subdirectory(cuda_on_cpu)
    target_link_libraries(moe_cuda INTERFACE cuda_on_cpu)
    # Kernels keep the order of their arithmetic whatever the compiler: no multiply-add is
    # formed unless it is written.
    target_compile_options(moe_cuda INTERFACE
        $<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang>:-ffp-contract=off>
        # Tensor maps are parameters aligned to 64 bytes: g++ remarks that 4.6 passed such
        # otherwise.
        $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-psabi>)
endif()

# The target's .cu files, for the compiler that this build has.
function(moe_cuda_target target)
    if(MOE_CUDA)
        return()
    endif()
    get_target_property(sources ${target} SOURCES)
    list(FILTER sources INCLUDE REGEX "\\.cu$")
    set_source_files_properties(${sources} PROPERTIES LANGUAGE CXX
                                COMPILE_OPTIONS "-xc++")
endfunction()
