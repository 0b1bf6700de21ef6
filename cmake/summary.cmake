# What was found, one line a part, with how to get what is missing.
function(moe_part found name benefit package)
    if(found)
        message(STATUS "  ✓ ${name}: ${benefit}")
    else()
        message(STATUS "  ✗ ${name}: without it no ${benefit}; get it with: apt-get update && apt-get install ${package}")
    endif()
endfunction()

find_program(MOE_GDB gdb)
message(STATUS "Optional parts:")
moe_part("${OpenMP_CXX_FOUND}" "OpenMP ${OpenMP_CXX_VERSION}" "several threads in reference_cpu"
         "g++ (or libomp-dev with clang)")
moe_part("${MPI_CXX_FOUND}" "MPI ${MPI_CXX_VERSION}" "ranks as processes without GPUs (--spawn)"
         "libopenmpi-dev openmpi-bin")
moe_part("${DOXYGEN_FOUND}" "Doxygen ${DOXYGEN_VERSION}" "documentation (./moe docs)"
         "doxygen doxygen-awesome-css python3")
moe_part("${MOE_GDB}" "gdb" "stepping through the layer" "gdb")
