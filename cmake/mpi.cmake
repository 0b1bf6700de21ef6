# MPI, where it can compile. openmpi-bin alone brings mpicxx but not mpi.h, and with that
# find_package(MPI) is an error even when it is only asked (CMake 3.31).
find_program(MOE_MPICXX NAMES mpicxx mpic++ mpiicpc)
if(MOE_MPICXX)
    file(WRITE ${CMAKE_BINARY_DIR}/CMakeFiles/mpi_header.cpp "#include <mpi.h>\n")
    execute_process(COMMAND ${MOE_MPICXX} -E ${CMAKE_BINARY_DIR}/CMakeFiles/mpi_header.cpp
                    RESULT_VARIABLE mpi_header_missing OUTPUT_QUIET ERROR_QUIET)
    if(mpi_header_missing EQUAL 0)
        find_package(MPI QUIET COMPONENTS CXX)
    endif()
endif()
