# cmake -DSOURCE=<tree> -DHEADER=<file> -P commit.cmake : writes the tree's commit as a
# header, only when it changed. Run at every build.
cmake_minimum_required(VERSION 3.21)
find_package(Git QUIET)
set(commit "")
if(GIT_FOUND)
    execute_process(COMMAND ${GIT_EXECUTABLE} -C ${SOURCE} rev-parse --short=12 HEAD
                    OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(commit STREQUAL "")
    set(commit "unknown")
else()
    execute_process(COMMAND ${GIT_EXECUTABLE} -C ${SOURCE} diff --quiet HEAD --
                    RESULT_VARIABLE differs OUTPUT_QUIET ERROR_QUIET)
    if(NOT differs EQUAL 0)
        string(APPEND commit "-modified")
    endif()
endif()
file(CONFIGURE OUTPUT ${HEADER} CONTENT "#define MOE_COMMIT \"@commit@\"\n" @ONLY)
