// Unicode's canonical composition (NFC), which checkpoints of Qwen apply before they tokenize and llama.cpp does not.
#pragma once

#include <string>

// `text` in UTF-8; bytes that are none stay as they are.
std::string nfc(const std::string & text);
