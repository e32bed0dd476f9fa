/* C11 7.19, as much as mlx-c's headers need. */
#pragma once
typedef __SIZE_TYPE__ size_t;
#define NULL ((void*)0)
