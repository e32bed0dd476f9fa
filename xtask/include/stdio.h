/* C11 7.21: a FILE is only ever passed on, so it stays opaque. */
#pragma once
#include "stddef.h"
struct FILE;
typedef struct FILE FILE;
