/* C11 5.2.4.2.2: included by mlx-c's headers, no macro of it is used. */
#pragma once
