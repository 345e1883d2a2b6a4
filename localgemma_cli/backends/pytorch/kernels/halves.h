/* Numbers in bfloat16, by their bits. */

#include <stdint.h>
#include <string.h>

typedef uint16_t Half;

static inline float wide(Half bits) {
    uint32_t whole = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &whole, sizeof value);
    return value;
}

/* To the nearest and of two to the even; what is not a number stays none. */
static inline Half narrowed(float value) {
    uint32_t whole;
    memcpy(&whole, &value, sizeof whole);
    uint32_t rounded = (whole + 0x7fff + (whole >> 16 & 1)) >> 16;
    return value == value ? rounded : 0x7fc0;
}
