// What this machine can do at most, as one JSON object: read_1 and read (bytes a second), fp32, int8 and
// tiles (of int8; operations a second; a multiply-add is two), with N threads but for read_1, best of
// several; 0 where the CPU has no such instructions. steady: the mean where read is the best.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AMX_INT8__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

using Clock = std::chrono::steady_clock;
#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint64_t Words __attribute__((vector_size(64)));

constexpr int TRIALS = 7;

// Of the fastest of several trials; adds the time of all of them to `total`.
static double seconds(int threads, const std::function<void(int)> &work, double *total = nullptr) {
    double best = 1e9;
    for (int trial = 0; trial < TRIALS; ++trial) {
        auto started = Clock::now();
        std::vector<std::thread> running;
        for (int index = 1; index < threads; ++index) running.emplace_back(work, index);
        work(0);
        for (auto &thread : running) thread.join();
        double spent = std::chrono::duration<double>(Clock::now() - started).count();
        if (spent < best) best = spent;
        if (total) *total += spent;
    }
    return best;
}

static Words *touched(size_t count) {
    static Words *memory = nullptr;
    if (memory) return memory;
    memory = static_cast<Words *>(aligned_alloc(4096, count * sizeof(Words)));
    for (size_t i = 0; i < count; ++i) memory[i] = Words{} + i;
    return memory;
}

struct Reading {
    double best, steady;
};

// Lines of RUNS places in turns, which lie `apart` bytes from each other, or, where that is 0, a RUNS-th
// of all that a thread reads: which of them is fastest depends on the CPU, by half as much again.
template <int RUNS> static Reading reading(int threads, size_t apart) {
    const size_t count = (size_t(768) << 20) / sizeof(Words), part = count / threads / (RUNS * 4096) * (RUNS * 4096);
    static Words *const memory = touched(count);
    const size_t run = apart ? apart / sizeof(Words) : part / RUNS;
    double total = 0, spent = seconds(threads, [=](int index) {
        const Words *at = memory + part * index, *end = at + part;
        Words a{}, b{}, c{}, d{};
        for (; at < end; at += RUNS * run)
            for (size_t line = 0; line < run; line += 4)
                for (int turn = 0; turn < RUNS; ++turn) {
                    const Words *of = at + turn * run + line;
                    a ^= of[0], b ^= of[1], c ^= of[2], d ^= of[3];
                }
        a ^= b ^ c ^ d;
        volatile uint64_t kept = a[0];
        (void)kept;
    }, &total);
    const double bytes = part * threads * sizeof(Words);
    return {bytes / spent, TRIALS * bytes / total};
}

static Reading most(int threads) {
    Reading most{0, 0};
    for (const Reading &one : {reading<1>(threads, 4096), reading<8>(threads, 4096), reading<4>(threads, 0)})
        most = {std::max(most.best, one.best), std::max(most.steady, one.steady)};
    return most;
}

// Chains that wait for nothing but themselves: enough of them fill every multiplier.
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
constexpr int CHAINS = 12, STEPS = 4000000;

static double floating(int threads) {
    double spent = seconds(threads, [](int index) {
        // Sums tend to a thousand of these, not to 0: numbers next to it are slow.
        Floats factor = Floats{} + 0.999f, term = Floats{} + 0.001f * (1 + index);
#define FLOATS(i) Floats sum##i = Floats{} + i##.0f;
#define MULTIPLY(i) sum##i = sum##i * factor + term;
#define TOTAL(i) factor += sum##i;
        EACH(FLOATS)
        for (int step = 0; step < STEPS; ++step) { EACH(MULTIPLY) }
        EACH(TOTAL)
        volatile float kept = factor[0];
        (void)kept;
    });
    return 2.0 * LANES * CHAINS * STEPS * threads / spent;
}

#if defined(__AVX512VNNI__)
using Bytes = __m512i;
static Bytes filled(int value) { return _mm512_set1_epi8(value); }
#define PRODUCT(sum, a, b) asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b))
static Bytes added(Bytes a, Bytes b) { return _mm512_add_epi32(a, b); }
#elif defined(__AVXVNNI__)
using Bytes = __m256i;
static Bytes filled(int value) { return _mm256_set1_epi8(value); }
#define PRODUCT(sum, a, b) asm("{vex} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b))
static Bytes added(Bytes a, Bytes b) { return _mm256_add_epi32(a, b); }
#elif defined(__AVX2__)
using Bytes = __m256i;
static Bytes filled(int value) { return _mm256_set1_epi8(value); }
// Sums of two in 16 bits, which these small numbers don't exceed, and of two of those by ones.
#define PRODUCT(sum, a, b)                                                                    \
    do {                                                                                      \
        Bytes pairs;                                                                          \
        asm("vpmaddubsw %3, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"               \
            : "+x"(sum), "=&x"(pairs)                                                         \
            : "x"(a), "x"(b), "x"(ones));                                                     \
    } while (0)
static Bytes added(Bytes a, Bytes b) { return _mm256_add_epi32(a, b); }
#endif

#if defined(__AVX2__)
static double integer(int threads) {
    double spent = seconds(threads, [](int index) {
        Bytes a = filled(1 + index), b = filled(1);
#if !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
        const Bytes ones = _mm256_set1_epi16(1);
#endif
#define START(i) Bytes sum##i = filled(i);
#define STEP(i) PRODUCT(sum##i, a, b);
#define REST(i) a = added(a, sum##i);
        EACH(START)
        for (int step = 0; step < STEPS; ++step) { EACH(STEP) }
        EACH(REST)
        volatile long long kept = a[0];
        (void)kept;
    });
    return 2.0 * sizeof(Bytes) * CHAINS * STEPS * threads / spent;
}
#else
static double integer(int) { return 0; }
#endif

#if defined(__AMX_INT8__) && defined(__linux__)
// Four chains: as many tiles of sums as are left beside two and two that are multiplied.
static double tiles(int threads) {
    constexpr int TURNS = 100000;
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA)) return 0;
    double spent = seconds(threads, [](int) {
        static const struct alignas(64) Whole {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
            constexpr Whole() {}
        } whole;
        _tile_loadconfig(&whole);
        for (int turn = 0; turn < TURNS; ++turn) {
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 4, 7);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
        _tile_release();
    });
    return 2.0 * 16 * 16 * 64 * 4 * TURNS * threads / spent;
}
#else
static double tiles(int) { return 0; }
#endif

int main(int, char **words) {
    int threads = atoi(words[1]);
    const Reading one = most(1), all = most(threads);
    printf("{\"read_1\": %.0f, \"read\": %.0f, \"steady\": %.0f, \"fp32\": %.0f, \"int8\": %.0f, \"tiles\": %.0f}\n",
           one.best, all.best, all.steady, floating(threads), integer(threads), tiles(threads));
}
