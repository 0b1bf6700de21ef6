/**
 * @file
 * The layer for other languages: plain C, in libmoe.so. Weights, tokens and gradients
 * stay in the memory of whoever has them, so that implementations can be measured on the
 * very same tensors (bench/peers.py).
 *
 *     moe_layer* layer;
 *     moe_saved* saved;
 *     moe_array output, gradient;
 *     moe_create("mixtral_8x7b", "naive_gpu:bf16", &layer);
 *     moe_set_parameter(layer, "router.weight", &weight);  // and the others
 *     moe_forward(layer, &hidden, 1, stream, &saved, &output);
 *     moe_backward(saved, &grad_output, stream);
 *     moe_gradient(saved, "hidden_states", &gradient);
 *     moe_release(saved);
 *     moe_destroy(layer);
 *
 * Every function returns MOE_OK, MOE_BAD_INPUT or MOE_INTERNAL_ERROR; after the last two
 * moe_last_error() has one line, nothing is half done, and results are not written.
 * Threads may use different layers at once; a layer and what its forwards saved are for
 * one thread at a time.
 *
 * Streams: work on the device is ordered after what `stream` (a cudaStream_t) has got
 * before the call, and what it gets afterwards is ordered after the work; NULL is the
 * default stream, where the kernels run. Layers that work on the host alone ignore it.
 *
 * Memory: a layer keeps what its calls used and gives it to the next ones, until it and
 * what its forwards saved are gone. So before moe_release() all that reads an output or
 * a gradient is done, or lies in the stream that the layer's next call is given.
 */
#ifndef MOE_C_H
#define MOE_C_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Raised when a function or struct below changes its meaning. */
#define MOE_INTERFACE_VERSION 2

/** What functions return: also the exit codes of the program. */
enum { MOE_OK = 0, MOE_BAD_INPUT = 2, MOE_INTERNAL_ERROR = 70 };

/** Element types. */
enum { MOE_FP64, MOE_FP32, MOE_BF16, MOE_INT64, MOE_INT32, MOE_UINT8 };

/** Memory spaces. */
enum { MOE_HOST, MOE_DEVICE };

/** A dense row-major array in somebody's memory. */
typedef struct moe_array {
    void* data;
    int32_t dtype;    /**< MOE_FP64, … */
    int32_t space;    /**< MOE_HOST or MOE_DEVICE */
    int32_t rank;     /**< number of axes, 0 to 4 */
    int64_t shape[4]; /**< slowest first; the first `rank` count */
} moe_array;

/** What layers have asked for since the library was opened, all together. */
typedef struct moe_counters {
    int64_t launches;     /**< kernels */
    int64_t host_waits;   /**< times the host stood still until the device was done */
    int64_t bytes;        /**< of the library's device tensors, now */
    int64_t peak_bytes;   /**< the most, since it was last reset */
    int64_t tensor_bytes; /**< of all the library's tensors, on the host, too */
    int64_t peak_tensor_bytes; /**< the most, since it was last reset */
} moe_counters;

/** A layer on one rank: config, suppliers of its components, parameters. */
typedef struct moe_layer moe_layer;

/** One forward: its output, what its backward needs, and then the gradients. */
typedef struct moe_saved moe_saved;

#pragma GCC visibility push(default) /* libmoe.so shows these functions only */

/** MOE_INTERFACE_VERSION of the library, to be compared with that of the caller. */
int32_t moe_interface_version(void);

/**
 * The line that says what was wrong with this thread's last failed call,
 * "<field> = <value>: <what is allowed>"; valid until the thread's next call.
 */
const char* moe_last_error(void);

/**
 * What can supply components on this machine, as JSON, valid until the program ends:
 * [{"supplier": "naive_gpu:bf16", "space": "device", "emulated": false, "device": "…"},
 * …] "emulated": kernels run on the CPU, and times say nothing about a GPU.
 */
int32_t moe_suppliers(const char** json);

/**
 * A layer without parameters.
 * @param config  JSON text with Megatron's field names, or the name of a preset; for one
 *                rank
 * @param spec    a supplier for all components, "naive_gpu:bf16", or a mix,
 *                "experts=naive_gpu:bf16,router=reference_cpu:fp64"; components that a
 * mix leaves out take reference_cpu:fp32
 */
int32_t moe_create(const char* config, const char* spec, moe_layer** layer);

/** Forwards that are still saved live on. NULL is allowed. */
int32_t moe_destroy(moe_layer* layer);

/**
 * Gives the layer a parameter, by the name and with the shape that core/parameters.h
 * lists ("experts.linear_fc1.weight").
 *
 * Nothing is copied where `value` has the dtype and memory space of the component that
 * wants it: the layer reads the caller's memory at every forward and backward, and the
 * caller keeps it until the layer is destroyed or the parameter set anew, and every
 * forward made with it is released. Otherwise the next forward makes a copy, once, and
 * what the caller writes afterwards is not seen. Setting a parameter makes the layer
 * afresh: the router's counts for its expert bias start at zero.
 */
int32_t moe_set_parameter(moe_layer* layer, const char* name, const moe_array* value);

/**
 * The whole layer, all parameters set.
 * @param hidden    (S, B, H), or (T, H) for S = T and B = 1; floating-point. Kept in
 *                  place, unchanged, by the caller until moe_release()
 * @param training  0: no losses, no counts for the expert bias
 * @param saved     for moe_backward() and moe_gradient(); the caller releases it
 * @param output    shape of `hidden`, where the layer left it: valid until moe_release()
 */
int32_t moe_forward(moe_layer* layer, const moe_array* hidden, int32_t training,
                    void* stream, moe_saved** saved, moe_array* output);

/**
 * The layer with the routing given: dispatch, experts and combine, without router and
 * shared experts. Only the parameters named "experts.…" need to be set.
 * @param hidden       (T, H), or (T, moe_latent_size) as the projection makes them,
 *                     floating-point; kept in place until moe_release(), as are
 * @param probs        (T, E), floating-point, 0 where not routed, and
 * @param routing_map  (T, E) MOE_UINT8, 1 where routed
 * @param saved, output  as for moe_forward()
 */
int32_t moe_experts_forward(moe_layer* layer, const moe_array* hidden,
                            const moe_array* probs, const moe_array* routing_map,
                            void* stream, moe_saved** saved, moe_array* output);

/**
 * The backward of either forward: gradients of sum(output * grad_output), with those of
 * the auxiliary losses after a moe_forward() in training. Makes all gradients; a second
 * call makes them anew, and what moe_gradient() gave before is gone.
 * @param grad_output  shape of the output, floating-point
 */
int32_t moe_backward(moe_saved* saved, const moe_array* grad_output, void* stream);

/**
 * As moe_backward(), for the last time: what the forward kept goes as soon as it has been
 * used. Another backward of this forward is MOE_BAD_INPUT.
 */
int32_t moe_last_backward(moe_saved* saved, const moe_array* grad_output, void* stream);

/**
 * Where moe_backward() left a gradient, in the dtype and memory space of the component
 * that made it; valid until moe_release() or the next moe_backward(). Copying is up to
 * the caller.
 * @param name  "hidden_states", a parameter's name, or, after moe_experts_forward(),
 *              "probs"
 */
int32_t moe_gradient(const moe_saved* saved, const char* name, moe_array* gradient);

/** Frees the output, the gradients and all that was kept. NULL is allowed. */
int32_t moe_release(moe_saved* saved);

/**
 * The counters as they stand.
 * @param reset_peak  not 0: from now on the peaks are those of what follows
 */
int32_t moe_count(int32_t reset_peak, moe_counters* counters);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

#endif
