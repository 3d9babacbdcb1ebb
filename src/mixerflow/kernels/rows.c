/* Row flows, forward, inverse and backward. The order is that of the reading. */
#include "numeric.h"
#include "types.h"
#include "maps.h"
#include "elementwise.h"
#include "tiles.h"
#include "moments.h"
#include "forward.h"
#include "inverse.h"
#include "gradients.h"
#include "backward.h"
#include "update.h"

/* Numbers in a vector: what rows are padded to. */
int lanes(void) { return VL; }
