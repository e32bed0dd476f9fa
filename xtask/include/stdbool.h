/* C11 7.18, as much as mlx-c's headers need. */
#pragma once
#define bool _Bool
#define true 1
#define false 0
