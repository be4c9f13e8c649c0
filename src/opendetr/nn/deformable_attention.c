/* The weighted sums of samples in multi-scale deformable attention, and their gradients, on a CPU.

   Arrays are float32 and contiguous, laid out as in deformable_attention.py: value (B, N, H, d), locations
   (B, Q, H, L, P, 2), weights (B, Q, H, L, P), sums (B, Q, H, d). A "pair" is an image and a head, b * H + h. Pairs share
   no data, so threads can process them in parallel. Values outside a level are zero. If a location or weight is not
   finite, the sum of its query and head is NaN. */

#include <math.h>
#include <stdint.h>

typedef struct {
    int64_t tokens, queries, heads, width, levels, points;
    const int64_t *shapes; /* (L, 2): h and w */
} Sizes;

/* The four cells around a sample: row y and column x of the upper left cell, and the offset from its centre in cells. */
typedef struct {
    int64_t x, y;
    float right, down;
} Place;

#define INLINE static inline __attribute__((always_inline))

/* Returns 1 if the location is inside the level, 0 if it is outside (its sample is zero), -1 if it is not finite. */
INLINE int find(const float *location, int64_t h, int64_t w, Place *place) {
    float x = location[0] * (float)w - 0.5f, y = location[1] * (float)h - 0.5f;
    if (!(x > -1.0f && y > -1.0f && x < (float)w && y < (float)h)) return isfinite(x) && isfinite(y) ? 0 : -1;
    place->x = (int64_t)(x + 1.0f) - 1;
    place->y = (int64_t)(y + 1.0f) - 1;
    place->right = x - (float)place->x;
    place->down = y - (float)place->y;
    return 1;
}

/* The index of the cell at corner 0..3 of a place, or -1 outside the level. */
INLINE int64_t cell(const Place *place, int corner, int64_t h, int64_t w) {
    int64_t x = place->x + (corner & 1), y = place->y + (corner >> 1);
    return x < 0 || y < 0 || x >= w || y >= h ? -1 : y * w + x;
}

/* The bilinear weight of corner 0..3. */
INLINE float share(const Place *place, int corner) {
    return (corner & 1 ? place->right : 1.0f - place->right) * (corner >> 1 ? place->down : 1.0f - place->down);
}

/* The numbers of a head are processed in blocks of 16. The rest, or all of a narrow head, is processed one by one. */
typedef float Block __attribute__((vector_size(64), aligned(4), may_alias));
enum { BLOCK = 16, MOST_BLOCKS = 4 };

INLINE float sum_of(const Block *block) {
    float total = 0.0f;
    #pragma omp simd reduction(+ : total)
    for (int i = 0; i < BLOCK; i++) total += (*block)[i];
    return total;
}

INLINE void sum_query(const Sizes *s, int64_t d, const float *value, const float *locations, const float *weights,
                      float *sums) {
    int64_t row = s->heads * d, blocks = d / BLOCK < MOST_BLOCKS ? d / BLOCK : MOST_BLOCKS, rest = blocks * BLOCK;
    Block total[MOST_BLOCKS] = {0};
    for (int64_t i = rest; i < d; i++) sums[i] = 0.0f;
    for (int64_t level = 0; level < s->levels; level++) {
        int64_t h = s->shapes[2 * level], w = s->shapes[2 * level + 1];
        for (int64_t point = 0; point < s->points; point++, locations += 2, weights++) {
            Place place;
            int status = find(locations, h, w, &place);
            if (status == 0 && isfinite(*weights)) continue;
            if (status <= 0) {
                for (int64_t i = 0; i < blocks; i++) total[i] += NAN;
                for (int64_t i = rest; i < d; i++) sums[i] = NAN;
                continue;
            }
            for (int corner = 0; corner < 4; corner++) {
                int64_t at = cell(&place, corner, h, w);
                if (at < 0) continue;
                float factor = *weights * share(&place, corner);
                const float *from = value + at * row;
                for (int64_t i = 0; i < blocks; i++) total[i] += factor * ((const Block *)from)[i];
                for (int64_t i = rest; i < d; i++) sums[i] += factor * from[i];
            }
        }
        value += h * w * row;
    }
    for (int64_t i = 0; i < blocks; i++) ((Block *)sums)[i] = total[i];
}

INLINE void spread_query(const Sizes *s, int64_t d, const float *value, const float *locations, const float *weights,
                         const float *gradient, float *of_value, float *of_locations, float *of_weights) {
    int64_t row = s->heads * d, blocks = d / BLOCK < MOST_BLOCKS ? d / BLOCK : MOST_BLOCKS, rest = blocks * BLOCK;
    Block given[MOST_BLOCKS] = {0};
    for (int64_t i = 0; i < blocks; i++) given[i] = ((const Block *)gradient)[i];
    for (int64_t level = 0; level < s->levels; level++) {
        int64_t h = s->shapes[2 * level], w = s->shapes[2 * level + 1];
        for (int64_t point = 0; point < s->points;
             point++, locations += 2, weights++, of_locations += 2, of_weights++) {
            Place place;
            int status = find(locations, h, w, &place);
            if (status <= 0) {
                of_locations[0] = of_locations[1] = *of_weights = status ? NAN : 0.0f;
                continue;
            }
            float worth[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            for (int corner = 0; corner < 4; corner++) {
                int64_t at = cell(&place, corner, h, w);
                if (at < 0) continue;
                float factor = *weights * share(&place, corner), total = 0.0f;
                const float *from = value + at * row;
                float *to = of_value + at * row;
                Block products = {0};
                for (int64_t i = 0; i < blocks; i++) {
                    products += ((const Block *)from)[i] * given[i];
                    ((Block *)to)[i] += factor * given[i];
                }
                for (int64_t i = rest; i < d; i++) {
                    total += from[i] * gradient[i];
                    to[i] += factor * gradient[i];
                }
                worth[corner] = blocks ? total + sum_of(&products) : total;
            }
            float across_top = worth[1] - worth[0], across_bottom = worth[3] - worth[2];
            float top = worth[0] + place.right * across_top, bottom = worth[2] + place.right * across_bottom;
            *of_weights = top + place.down * (bottom - top);
            of_locations[0] = *weights * (float)w * (across_top + place.down * (across_bottom - across_top));
            of_locations[1] = *weights * (float)h * (bottom - top);
        }
        value += h * w * row;
        of_value += h * w * row;
    }
}

INLINE void sum_pairs(const Sizes *s, int64_t d, int64_t pair, int64_t end, int64_t first, int64_t last,
                      const float *value, const float *locations, const float *weights, float *sums) {
    int64_t samples = s->levels * s->points;
    for (; pair < end; pair++) {
        int64_t image = pair / s->heads, head = pair % s->heads;
        const float *values = value + (image * s->tokens * s->heads + head) * d;
        for (int64_t query = first; query < last; query++) {
            int64_t at = (image * s->queries + query) * s->heads + head;
            sum_query(s, d, values, locations + 2 * at * samples, weights + at * samples, sums + at * d);
        }
    }
}

INLINE void spread_pairs(const Sizes *s, int64_t d, int64_t pair, int64_t end, const float *value,
                         const float *locations, const float *weights, const float *gradient, float *of_value,
                         float *of_locations, float *of_weights) {
    int64_t samples = s->levels * s->points;
    for (; pair < end; pair++) {
        int64_t image = pair / s->heads, head = pair % s->heads, start = (image * s->tokens * s->heads + head) * d;
        for (int64_t query = 0; query < s->queries; query++) {
            int64_t at = (image * s->queries + query) * s->heads + head;
            spread_query(s, d, value + start, locations + 2 * at * samples, weights + at * samples, gradient + at * d,
                         of_value + start, of_locations + 2 * at * samples, of_weights + at * samples);
        }
    }
}

/* Computes the sums of the queries first..last - 1 of the pairs pair..end - 1. Common widths are compile-time constants. */
void opendetr_sum(const Sizes *s, int64_t pair, int64_t end, int64_t first, int64_t last, const float *value,
                  const float *locations, const float *weights, float *sums) {
    switch (s->width) {
    case 16: sum_pairs(s, 16, pair, end, first, last, value, locations, weights, sums); break;
    case 32: sum_pairs(s, 32, pair, end, first, last, value, locations, weights, sums); break;
    default: sum_pairs(s, s->width, pair, end, first, last, value, locations, weights, sums);
    }
}

/* Computes the gradients of the pairs pair..end - 1. They are added to of_value and written to the other arrays. */
void opendetr_spread(const Sizes *s, int64_t pair, int64_t end, const float *value, const float *locations,
                     const float *weights, const float *gradient, float *of_value, float *of_locations,
                     float *of_weights) {
    switch (s->width) {
    case 16: spread_pairs(s, 16, pair, end, value, locations, weights, gradient, of_value, of_locations, of_weights); break;
    case 32: spread_pairs(s, 32, pair, end, value, locations, weights, gradient, of_value, of_locations, of_weights); break;
    default: spread_pairs(s, s->width, pair, end, value, locations, weights, gradient, of_value, of_locations, of_weights);
    }
}
