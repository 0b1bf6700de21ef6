# MOE_PORTABLE: a program for other machines. All that it needs but the C library is linked
# into it, and its instructions are those of x86-64 servers of the last ten years.
set(MOE_FMT fmt::fmt)
if(NOT MOE_PORTABLE)
    return()
endif()
add_compile_options(-ffile-prefix-map=${PROJECT_SOURCE_DIR}/=)  # in messages
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-ffunction-sections>
                    $<$<COMPILE_LANGUAGE:CXX>:-fdata-sections>)
# A shared library shows its own interface, nothing that was linked into it.
add_link_options(-static-libstdc++ -static-libgcc LINKER:--gc-sections
                 LINKER:--exclude-libs,ALL)

# Debian's libfmt is shared.
set(MOE_FMT moe_fmt)
add_library(moe_fmt STATIC cmake/fmt.cpp)
target_compile_options(moe_fmt PRIVATE -fkeep-inline-functions)
target_include_directories(moe_fmt SYSTEM PUBLIC
    $<TARGET_PROPERTY:fmt::fmt-header-only,INTERFACE_INCLUDE_DIRECTORIES>)

if(OpenMP_CXX_FOUND)
    # The thread-local variables of libgomp.a fit into programs only: libmoe.so takes the
    # shared one, which lies beside it in a bundle.
    foreach(name libgomp.a libgomp.so)
        execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=${name}
                        OUTPUT_VARIABLE ${name} OUTPUT_STRIP_TRAILING_WHITESPACE)
    endforeach()
    if(NOT IS_ABSOLUTE "${libgomp.a}")
        message(FATAL_ERROR "libgomp.a = missing: MOE_PORTABLE needs it; g++ brings it")
    endif()
    set(is_shared $<STREQUAL:$<TARGET_PROPERTY:TYPE>,SHARED_LIBRARY>)
    set_target_properties(OpenMP::OpenMP_CXX PROPERTIES INTERFACE_LINK_LIBRARIES
        "$<IF:${is_shared},${libgomp.so},${libgomp.a}>;Threads::Threads")
    set(CMAKE_BUILD_RPATH "$ORIGIN")
endif()
