# MOE_OBSERVE: the compiler calls the executor at every load and store of our code.
if(NOT MOE_OBSERVE)
    return()
endif()
if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    message(FATAL_ERROR "compiler = ${CMAKE_CXX_COMPILER_ID}: MOE_OBSERVE needs g++ (clang \
does not show copies of structs)")
endif()
if(MOE_CUDA OR MOE_SANITIZE OR MOE_TSAN OR MOE_CHECKED)
    message(FATAL_ERROR "MOE_OBSERVE = ON: not with MOE_CUDA, MOE_SANITIZE, MOE_TSAN or \
MOE_CHECKED")
endif()
# TUTORIAL: -fsanitize=thread makes the compiler call a function of ThreadSanitizer's at each
# access. We compile with it, link without it, and those functions are ours. An inline
# function compiled with it here and without it there would be one symbol to the linker,
# which keeps either; so everything has the flag, but the executor's own files.
# Left alone, the compiler would split a float4 whose components are used into four loads.
set(seen -fsanitize=thread -fno-tree-sra -fno-ipa-sra -Wno-tsan
    "SHELL:--param tsan-instrument-func-entry-exit=0")
set(is_executor $<STREQUAL:$<TARGET_PROPERTY:NAME>,cuda_on_cpu>)
target_compile_options(moe_flags INTERFACE "$<$<NOT:${is_executor}>:${seen}>")
target_compile_definitions(moe_flags INTERFACE CUDA_ON_CPU_OBSERVE)
target_link_libraries(moe_flags INTERFACE $<LINK_ONLY:cuda_on_cpu>)
