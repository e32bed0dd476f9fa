/* C11 7.3: the headers spell the type `float _Complex` themselves. */
#pragma once
