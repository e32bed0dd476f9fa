/* C11 7.22: mlx-c's headers use nothing of it but size_t. */
#pragma once
#include "stddef.h"
