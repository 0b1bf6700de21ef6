# What makes compiling cheap: headers of others are parsed once, and there is no more debug
# information than is asked for.

# A compiler cache where there is one; with precompiled headers it must overlook their times.
find_program(MOE_CCACHE ccache)
if(MOE_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
        CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
        ${MOE_CCACHE})
endif()

# Optimised builds name functions and lines, as errors, stories and profilers show them;
# values are for host-debug, the build for gdb.
add_compile_options("$<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:RelWithDebInfo>>:-g1>")

# moe_precompile(TARGET [HEADER…]) : the target's C++ begins with {fmt} and the standard
# library, which most files read, and with the headers named. Each file still includes what it
# uses: -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON builds as well, only longer.
function(moe_precompile target)
    set(headers "$<$<COMPILE_LANGUAGE:CXX>:${PROJECT_SOURCE_DIR}/cmake/fmt_as_it_is.h>")
    foreach(name algorithm array chrono cmath filesystem fstream functional map memory mutex
            numeric optional set sstream string thread vector ${ARGN})
        list(APPEND headers "$<$<COMPILE_LANGUAGE:CXX>:<${name}$<ANGLE-R>>")
    endforeach()
    target_precompile_headers(${target} PRIVATE ${headers})
endfunction()

# moe_precompiled_as(TARGET OTHER) : with the headers of a target of the same flags; of
# another -O, g++ 14 would not take them.
function(moe_precompiled_as target other)
    target_precompile_headers(${target} REUSE_FROM ${other})
endfunction()

# moe_join(TARGET ROOM…) : each room's files are compiled as one ("." is the target's own
# folder), so that what they include is read, and its templates are instantiated, once. For words, not for the layer itself: whoever
# changes a kernel waits for that kernel alone.
option(MOE_JOIN "Compile each room of files that hold no arithmetic as one" ON)
function(moe_join target)
    if(NOT MOE_JOIN)
        return()
    endif()
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
    get_target_property(sources ${target} SOURCES)
    foreach(room ${ARGN})
        set(files ${sources})
        string(REPLACE "^./" "^" pattern "^${room}/[^/]*[.]cpp$")
        list(FILTER files INCLUDE REGEX "${pattern}")
        set_source_files_properties(${files} PROPERTIES UNITY_GROUP ${room})
    endforeach()
endfunction()

# moe_optimise_less(TARGET) : for C++ whose speed nobody waits for, but its compilation.
function(moe_optimise_less target)
    set(bogus "")
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
        # g++ 12 believes that std::string overruns itself
        set(bogus -Wno-array-bounds -Wno-stringop-overflow)
    endif()
    target_compile_options(${target} PRIVATE
        "$<$<AND:$<COMPILE_LANGUAGE:CXX>,$<NOT:$<CONFIG:Debug>>>:-O1;${bogus}>")
endfunction()
