// graph.cpp: launches of what was captured. A launch makes the calls of the capture once
// more, in the launch's stream and in streams and with events of the graph's own: so
// held work, faults and the search for races are those of streams.

#include "graph.h"

#include "capture.h"
#include "error.h"
#include "handles.h"

struct CUgraphExec_st {
    std::shared_ptr<const cuda_on_cpu::Graph> graph;
    std::vector<cudaStream_t> side_streams;  // of lanes 1, 2, …
    std::vector<cudaEvent_t> events;
    cudaEvent_t last_launch = nullptr;
};

using namespace cuda_on_cpu;

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes,
                              std::size_t* count) {
    if (const cudaError_t error = check_handle("cudaGraphGetNodes", graph)) return error;
    if (nodes != nullptr)
        return set_error(cudaErrorNotSupported,
                         "cudaGraphGetNodes: nodes = not null: the executor has nodes "
                         "only to count");
    *count = 0;
    for (const Graph::Step& step : graph->graph->steps)
        *count += step.kind == Graph::Kind::work;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                 unsigned long long flags) {
    constexpr const char* kFunction = "cudaGraphInstantiate";
    *exec = nullptr;
    if (const cudaError_t error = check_handle(kFunction, graph)) return error;
    if (flags != 0)
        return set_error(cudaErrorNotSupported, std::string(kFunction) +
                                                    ": flags = " + std::to_string(flags) +
                                                    ": must be 0 on the executor");
    for (const auto& [address, memory] : graph->graph->memory)
        if (!memory.is_freed)
            return set_error(
                cudaErrorNotSupported,
                std::string(kFunction) +
                    ": memory of a captured cudaMallocAsync must be freed in "
                    "the same capture on the executor");
    make(exec, {graph->graph, {}, {}, nullptr});
    (*exec)->side_streams.resize(std::size_t(graph->graph->lanes - 1));
    (*exec)->events.resize(std::size_t(graph->graph->events));
    for (cudaStream_t& stream : (*exec)->side_streams)
        cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    for (cudaEvent_t& event : (*exec)->events) cudaEventCreate(&event);
    return cudaEventCreate(&(*exec)->last_launch);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    constexpr const char* kFunction = "cudaGraphLaunch";
    if (const cudaError_t error = check_handle(kFunction, exec)) return error;
    if (const cudaError_t error = check_stream(kFunction, stream)) return error;
    if (is_captured(stream))
        return set_error(cudaErrorNotSupported, std::string(kFunction) +
                                                    ": the executor has no graphs "
                                                    "within graphs");
    // Launches of one graph follow each other, in whatever streams.
    cudaError_t error = cudaStreamWaitEvent(stream, exec->last_launch);
    for (const Graph::Step& step : exec->graph->steps) {
        if (error != cudaSuccess) return error;
        const cudaStream_t lane =
            step.lane == 0 ? stream : exec->side_streams[step.lane - 1];
        switch (step.kind) {
            case Graph::Kind::work:  // which keeps the graph's memory as long
                error = submit(kFunction, lane,
                               [graph = exec->graph, &step](observe::Ticket place) {
                                   return step.work(place);
                               });
                break;
            case Graph::Kind::record:
                error = cudaEventRecord(exec->events[step.event], lane);
                break;
            case Graph::Kind::wait:
                error = cudaStreamWaitEvent(lane, exec->events[step.event]);
        }
    }
    return error != cudaSuccess ? error : cudaEventRecord(exec->last_launch, stream);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    constexpr const char* kFunction = "cudaGraphExecDestroy";
    if (const cudaError_t error = check_handle(kFunction, exec)) return error;
    for (cudaStream_t stream : exec->side_streams) cudaStreamDestroy(stream);
    for (cudaEvent_t event : exec->events) cudaEventDestroy(event);
    cudaEventDestroy(exec->last_launch);
    return destroy(kFunction, exec);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    return destroy("cudaGraphDestroy", graph);
}
