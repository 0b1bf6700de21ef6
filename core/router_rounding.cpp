#include "core/router_rounding.h"

#include "core/transfer.h"

namespace moe {

Tensor RouterRounding::of(const Tensor& values) const {
    if (!rounds_ || !values.defined()) return values;
    return transfer(transfer(values, {values.space(), DType::bf16}),
                    {values.space(), values.dtype()});
}

}  // namespace moe
