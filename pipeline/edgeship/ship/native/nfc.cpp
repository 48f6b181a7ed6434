#include "nfc.h"

#include "nfc_tables.h"  // written by the build, from Python's unicodedata

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

// Unicode Standard Annex 15, and chapter 3.12 for Hangul.
namespace {

const uint32_t S = 0xAC00, L = 0x1100, V = 0x1161, T = 0x11A7, LN = 19, VN = 21, TN = 28;
const uint32_t RAW = 0x80000000;  // marks a byte that is no UTF-8

int class_of(uint32_t c) {
    const auto found = std::lower_bound(std::begin(CLASSES), std::end(CLASSES), c,
                                        [](const Class & each, uint32_t code) { return each.code < code; });
    return found != std::end(CLASSES) && found->code == c ? found->value : 0;
}

void decompose(uint32_t c, std::vector<uint32_t> & out) {
    if (c >= S && c < S + LN * VN * TN) {
        const uint32_t at = c - S;
        out.push_back(L + at / (VN * TN));
        out.push_back(V + at % (VN * TN) / TN);
        if (at % TN) {
            out.push_back(T + at % TN);
        }
        return;
    }
    const auto found = std::lower_bound(std::begin(PARTS), std::end(PARTS), c,
                                        [](const Parts & each, uint32_t code) { return each.code < code; });
    if (found == std::end(PARTS) || found->code != c) {
        out.push_back(c);
        return;
    }
    decompose(found->first, out);
    if (found->second) {
        decompose(found->second, out);
    }
}

// What two characters become together; 0 where they stay apart.
uint32_t compose(uint32_t a, uint32_t b) {
    if (a >= L && a < L + LN && b >= V && b < V + VN) {
        return S + ((a - L) * VN + (b - V)) * TN;
    }
    if (a >= S && a < S + LN * VN * TN && (a - S) % TN == 0 && b > T && b < T + TN) {
        return a + (b - T);
    }
    const auto before = [](const Pair & each, const std::pair<uint32_t, uint32_t> & key) {
        return std::make_pair(each.first, each.second) < key;
    };
    const auto found = std::lower_bound(std::begin(PAIRS), std::end(PAIRS), std::make_pair(a, b), before);
    return found != std::end(PAIRS) && found->first == a && found->second == b ? found->code : 0;
}

std::vector<uint32_t> decode(const std::string & text) {
    std::vector<uint32_t> out;
    for (size_t i = 0; i < text.size();) {
        const unsigned char c = text[i];
        const int more = c < 0x80 ? 0 : c >= 0xF0 && c < 0xF5 ? 3 : c >= 0xE0 ? 2 : 1;
        uint32_t code = more == 0 ? c : c & (0x3F >> more);
        bool good = c < 0x80 || (c >= 0xC2 && c < 0xF5 && i + more < text.size());
        for (int k = 1; good && k <= more; k++) {
            good = (text[i + k] & 0xC0) == 0x80;
            code = code << 6 | (text[i + k] & 0x3F);
        }
        out.push_back(good ? code : RAW | c);
        i += good ? more + 1 : 1;
    }
    return out;
}

void encode(uint32_t c, std::string & out) {
    if (c & RAW || c < 0x80) {
        out += static_cast<char>(c & 0xFF);
    } else if (c < 0x800) {
        out += {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
    } else if (c < 0x10000) {
        out += {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 0x3F)), static_cast<char>(0x80 | (c & 0x3F))};
    } else {
        out += {static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 0x3F)),
                static_cast<char>(0x80 | (c >> 6 & 0x3F)), static_cast<char>(0x80 | (c & 0x3F))};
    }
}

}  // namespace

std::string nfc(const std::string & text) {
    std::vector<uint32_t> apart;
    for (uint32_t c : decode(text)) {
        decompose(c, apart);
    }
    for (size_t i = 0; i < apart.size();) {  // marks of one character in the order of their classes
        const size_t start = i;
        while (i < apart.size() && class_of(apart[i])) {
            i++;
        }
        std::stable_sort(apart.begin() + start, apart.begin() + i,
                         [](uint32_t a, uint32_t b) { return class_of(a) < class_of(b); });
        i += i == start;
    }
    std::vector<uint32_t> made;
    size_t starter = SIZE_MAX;
    int last = 0;  // class of the character before, where that was not taken in
    for (uint32_t c : apart) {
        const int own = class_of(c);
        const bool adjacent = starter != SIZE_MAX && starter + 1 == made.size();
        const bool reaches = starter != SIZE_MAX && (adjacent || (last && last < own));
        const uint32_t together = reaches ? compose(made[starter], c) : 0;
        if (together) {
            made[starter] = together;
            continue;
        }
        if (!own) {
            starter = made.size();
        }
        last = own;
        made.push_back(c);
    }
    std::string out;
    for (uint32_t c : made) {
        encode(c, out);
    }
    return out;
}
