// What llama.cpp itself makes of a GGUF file, for tests to compare with.
//
//   probe tokens FILE           texts on stdin, a zero byte after each: a line of ids for each
//   probe ends FILE             the ids that end an answer, in a line
//   probe logits FILE ID ...    of every position, as float32
//   probe values FILE TENSOR    a tensor's values as ggml dequantizes them, as float32
//
// It ends with 1 and llama.cpp's own words where llama.cpp refuses the file.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "ggml.h"
#include "gguf.h"
#include "llama.h"

static void only_errors(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) {
        std::fputs(text, stderr);
    }
}

static llama_model * load(const char * path, bool vocabulary_only) {
    llama_model_params params = llama_model_default_params();
    params.vocab_only = vocabulary_only;
    params.n_gpu_layers = 0;
    params.use_extra_bufts = false;  // repacked weights are summed in another order
    llama_model * model = llama_model_load_from_file(path, params);
    if (model == nullptr) {
        std::exit(1);
    }
    return model;
}

static int print_tokens(const char * path) {
    const llama_vocab * vocab = llama_model_get_vocab(load(path, true));
    std::string input((std::istreambuf_iterator<char>(std::cin)), {});
    for (size_t at = 0; at < input.size();) {
        const size_t end = input.find('\0', at);
        const int length = (int) (end - at);
        std::vector<llama_token> ids(length + 16);
        const int count = llama_tokenize(
            vocab, input.data() + at, length, ids.data(), (int) ids.size(), true, true);
        for (int i = 0; i < count; ++i) {
            std::printf("%d ", ids[i]);
        }
        std::printf("\n");
        at = end + 1;
    }
    return 0;
}

static int print_ends(const char * path) {
    const llama_vocab * vocab = llama_model_get_vocab(load(path, true));
    for (int id = 0; id < llama_vocab_n_tokens(vocab); ++id) {
        if (llama_vocab_is_eog(vocab, id)) {
            std::printf("%d ", id);
        }
    }
    std::printf("\n");
    return 0;
}

static int write_logits(const char * path, std::vector<llama_token> ids) {
    llama_model * model = load(path, false);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = (uint32_t) ids.size();
    params.n_threads = params.n_threads_batch = 1;
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context * context = llama_init_from_model(model, params);
    if (context == nullptr) {
        return 1;
    }
    llama_batch batch = llama_batch_get_one(ids.data(), (int32_t) ids.size());
    std::vector<int8_t> wanted(ids.size(), 1);
    batch.logits = wanted.data();
    if (llama_decode(context, batch) != 0) {
        return 1;
    }
    const size_t count = ids.size() * llama_vocab_n_tokens(llama_model_get_vocab(model));
    return std::fwrite(llama_get_logits(context), sizeof(float), count, stdout) == count ? 0 : 1;
}

static int write_values(const char * path, const char * name) {
    ggml_context * tensors = nullptr;
    if (gguf_init_from_file(path, {/*no_alloc=*/false, /*ctx=*/&tensors}) == nullptr) {
        return 1;
    }
    const ggml_tensor * tensor = ggml_get_tensor(tensors, name);
    if (tensor == nullptr) {
        return 1;
    }
    std::vector<float> values(ggml_nelements(tensor));
    if (tensor->type == GGML_TYPE_F32) {
        std::memcpy(values.data(), tensor->data, values.size() * sizeof(float));
    } else {
        ggml_get_type_traits(tensor->type)->to_float(
            tensor->data, values.data(), (int64_t) values.size());
    }
    const size_t written = std::fwrite(values.data(), sizeof(float), values.size(), stdout);
    return written == values.size() ? 0 : 1;
}

int main(int count, char ** arguments) {
    const std::string asked = count > 2 ? arguments[1] : "";
    llama_log_set(only_errors, nullptr);
    if (asked == "tokens") {
        return print_tokens(arguments[2]);
    }
    if (asked == "ends") {
        return print_ends(arguments[2]);
    }
    if (asked == "values" && count == 4) {
        return write_values(arguments[2], arguments[3]);
    }
    if (asked == "logits") {
        std::vector<llama_token> ids;
        for (int i = 3; i < count; ++i) {
            ids.push_back(std::atoi(arguments[i]));
        }
        return write_logits(arguments[2], ids);
    }
    return 2;
}
