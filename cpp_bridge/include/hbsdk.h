/*
 * hbsdk: pictures of your own subject, in a native app, with no Python in the process.
 *
 * A complete program (examples/generate.c is the same with every status checked):
 *
 *     #include <hbsdk.h>
 *     #include <stdio.h>
 *
 *     int main(void) {
 *         hbsdk_open_params where;
 *         hbsdk_open_params_init(&where, sizeof where);
 *         where.engine_folder = "engines/built/mini-cpu-0123456789ab";
 *         hbsdk_context *context = NULL;
 *         if (hbsdk_open(&where, &context) != HBSDK_OK) {
 *             fprintf(stderr, "%s\n", hbsdk_last_error());
 *             return 1;
 *         }
 *         hbsdk_subject *fox = NULL;
 *         hbsdk_subject_load(context, "fox.safetensors", &fox);
 *
 *         hbsdk_generate_params what;
 *         hbsdk_generate_params_init(&what, sizeof what);
 *         const hbsdk_subject *subjects[] = {fox};
 *         what.prompt = "a watercolor of S* in the snow";
 *         what.subjects = subjects;
 *         what.num_subjects = 1;
 *         what.seed = 7;
 *         hbsdk_image image = {0};
 *         if (hbsdk_generate(context, &what, &image) == HBSDK_OK) {
 *             ... image.pixels: image.height rows of image.width pixels, red, green, blue ...
 *         }
 *         hbsdk_image_free(&image);
 *         hbsdk_subject_free(fox);
 *         hbsdk_close(context);
 *     }
 *
 * Engines are built by `python export/build_engines.py`, subjects are made by hbsdk in Python or by
 * `hbsdk_probe` here. Build engines on your own machine: they are code, and a manifest shows damage
 * but is no signature.
 *
 * STATUS. Every function that can fail returns a status; HBSDK_OK is 0. After any other,
 * `hbsdk_last_error` is one line that says what was expected, what was got, and what to do. A call
 * that fails leaves handles, images and stats that it was to fill in as NULL or zero; images and
 * stats only if it could tell their number and size: its parameters' struct_size and num_images
 * were right.
 *
 * OWNERSHIP. What you pass in stays yours and is not used after the call returns (`user_data` and
 * callbacks included). A handle is freed by its own function, an image's pixels by
 * `hbsdk_image_free`; NULL is accepted there and does nothing. Handles are numbers that are never
 * used twice: one that was freed is refused with HBSDK_INVALID_ARGUMENT wherever it is passed. A
 * subject belongs to no context and outlives the one that it was loaded with.
 *
 * THREADS. Every function may be called from any thread at any time. Threads may share a context
 * and draw with it at once: runs share the networks, which are never written to, and nothing else.
 * Only loading a network, which happens once, makes others wait that need one to be loaded.
 * Callbacks are called by the thread that called `hbsdk_generate`; no lock is held meanwhile, but
 * for TensorRT's engines (below). Closing a context that others use stops their calls
 * (HBSDK_CANCELLED) before the next network that they would load or run, or after the step that
 * they are in; a call whose last network runs already still ends well. The context's memory goes
 * with the last of them. What a thread was told by `hbsdk_last_error` is its own.
 * TensorRT's engines draw one run at a time, from its first step to its last: threads take turns,
 * so a callback must not wait for another thread that draws with the same context. Drawing with it
 * from within a callback is refused with HBSDK_INVALID_ARGUMENT.
 *
 * TEXT is UTF-8 and ends with a zero byte; paths are in the system's own encoding.
 */
#ifndef HBSDK_H
#define HBSDK_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#if defined(HBSDK_BUILDING)
#define HBSDK_API __declspec(dllexport)
#else
#define HBSDK_API __declspec(dllimport)
#endif
#else
#define HBSDK_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Changes only when a program that was compiled with an older header would break. */
#define HBSDK_ABI_VERSION 1

typedef int32_t hbsdk_status;
enum {
    HBSDK_OK = 0,
    HBSDK_INVALID_ARGUMENT = 1, /* NULL, a freed handle, a value out of its range */
    HBSDK_NOT_FOUND = 2,        /* no such file or folder */
    HBSDK_DAMAGED = 3,          /* bytes are not what their manifest or their format says */
    HBSDK_MISMATCH = 4,         /* of another width, bundle or version */
    HBSDK_BAD_PROMPT = 5,       /* no text, a placeholder without a subject, or the reverse */
    HBSDK_CANCELLED = 6,        /* by the callback, hbsdk_cancel or hbsdk_close */
    HBSDK_OUT_OF_MEMORY = 7,    /* of the machine or the GPU */
    HBSDK_RUNTIME = 8,          /* ONNX Runtime or TensorRT refused */
    HBSDK_INTERNAL = 9          /* a fault of hbsdk's: please report the message */
};

typedef struct hbsdk_context hbsdk_context; /* opened engines */
typedef struct hbsdk_subject hbsdk_subject; /* a subject's words and name */

/*
 * A picture: height rows of width pixels of `channels` bytes, top row first, without gaps.
 * From hbsdk_generate: 3 channels, sRGB, to be freed by hbsdk_image_free.
 */
typedef struct hbsdk_image {
    uint8_t* pixels;
    int32_t width;    /* px */
    int32_t height;   /* px */
    int32_t channels; /* 3: red, green, blue; 4: and alpha, which is ignored; 1: a mask */
} hbsdk_image;

/* Where the time of a call went, in ms. */
typedef struct hbsdk_stats {
    size_t struct_size; /* sizeof(hbsdk_stats), set by you */
    double total_ms;    /* the call */
    double graphs_ms;   /* within it, in the networks */
    double loading_ms;  /* within it, hashing and loading files; 0 if all networks were loaded */
} hbsdk_stats;

/*
 * Called after each step. Return 0 to go on, anything else to stop the run, which then ends with
 * HBSDK_CANCELLED. It may call any function (TensorRT's engines: see THREADS), and must not throw
 * or jump out.
 */
typedef int (*hbsdk_progress)(int32_t step, int32_t num_inference_steps, void* user_data);

/* Fields are only ever added at the end: set them up with hbsdk_open_params_init. */
typedef struct hbsdk_open_params {
    size_t struct_size;
    const char* engine_folder; /* must be set; it holds a manifest.json */
    const char* bundle_folder; /* refuse engines of any other bundle; NULL takes any */
    const char* device;        /* "cpu", "cuda", "cuda:1"; NULL is a GPU if the recipe names its
                                  provider, ONNX Runtime has it and it works, and else the CPU */
    int32_t threads;           /* of the CPU; 0 is one a core */
    int32_t use_tensorrt;      /* let ONNX Runtime's TensorRT provider run ONNX graphs on the GPU */
    int32_t low_memory;        /* release each network after its stage, however a call ends */
    int32_t load_all;          /* load every network now, not when it is first needed */
} hbsdk_open_params;

/* Fields are only ever added at the end: set them up with hbsdk_generate_params_init. */
typedef struct hbsdk_generate_params {
    size_t struct_size;
    const char* prompt;          /* must be set; "S*" or "<name>" stands for a subject. The text
                                    encoder reads 75 tokens: text after them is left out without
                                    a word, a subject after them is refused */
    const char* negative_prompt; /* NULL is none */
    const hbsdk_subject* const* subjects;
    size_t num_subjects;
    uint64_t seed;               /* picture i starts from seed + i */
    int32_t num_images;          /* 1 to 64, as the engines allow; 1 by default */
    int32_t num_inference_steps; /* 1 to 50, or 100; 20 by default */
    float guidance_scale;        /* 1 and less is without; negative, the default, is the bundle's */
    int32_t height;              /* px; 0 is the bundle's own */
    int32_t width;               /* px; 0 is the bundle's own */
    const char* sampler;         /* "ddim", "euler" or "dpm++2m"; NULL is the bundle's default */
    hbsdk_progress on_step;      /* NULL is none */
    void* user_data;             /* passed on to on_step */
    hbsdk_stats* stats;          /* filled in if not NULL */
} hbsdk_generate_params;

/* The ABI of the library that is loaded; compare it with HBSDK_ABI_VERSION. */
HBSDK_API uint32_t hbsdk_abi_version(void);

/* A status in words, such as "not found"; never NULL, never to be freed. */
HBSDK_API const char* hbsdk_status_text(hbsdk_status status);

/* What this thread's last failure was; "" before any. Lasts until this thread's next call. */
HBSDK_API const char* hbsdk_last_error(void);

/*
 * Set the defaults. `struct_size` is sizeof your variable: a newer library leaves alone what your
 * header did not have. A library that is older than your header refuses it with HBSDK_MISMATCH.
 */
HBSDK_API hbsdk_status hbsdk_open_params_init(hbsdk_open_params* params, size_t struct_size);
HBSDK_API hbsdk_status hbsdk_generate_params_init(hbsdk_generate_params* params,
                                                  size_t struct_size);

/* Open engines. Files are hashed, and networks loaded, when first needed or with load_all. */
HBSDK_API hbsdk_status hbsdk_open(const hbsdk_open_params* params, hbsdk_context** context);
HBSDK_API hbsdk_status hbsdk_close(hbsdk_context* context);

/* Stop every call on the context that is under way now, as hbsdk_close does. What begins later is
   not stopped. Any thread may call it. */
HBSDK_API hbsdk_status hbsdk_cancel(hbsdk_context* context);

/*
 * Read a subject: a .safetensors file of hbsdk or a textual inversion of another tool. Its name is
 * the file's. With a context, its width must be the bundle's; NULL takes any.
 */
HBSDK_API hbsdk_status hbsdk_subject_load(const hbsdk_context* context, const char* path,
                                          hbsdk_subject** subject);

/*
 * Make a subject of one photo: the probe, without refinement.
 *   image: 3 or 4 channels, both sides at least 16 px.
 *   mask: 1 channel, of the same size; 128 and more is the subject, or 1 if nothing is more.
 *   name: what "<name>" in prompts and the file will be called, as hbsdk_subject_save's rule is;
 *     NULL is "subject".
 */
HBSDK_API hbsdk_status hbsdk_probe(hbsdk_context* context, const hbsdk_image* image,
                                   const hbsdk_image* mask, const char* name,
                                   hbsdk_subject** subject);

/*
 * Write a file, whole or not at all, in place of an older one. `path` is a folder that exists, for
 * NAME.safetensors in it by the subject's name; or a file's path that ends with .safetensors, whose
 * name is then what the subject will be called when it is read: up to 64 of a-z, 0-9, _, . and -,
 * not led by . or -, with no . last, and none of Windows' devices (con, nul, com1, ...).
 */
HBSDK_API hbsdk_status hbsdk_subject_save(const hbsdk_subject* subject, const char* path);
HBSDK_API hbsdk_status hbsdk_subject_free(hbsdk_subject* subject);

/* Draw. `images` has room for params->num_images. */
HBSDK_API hbsdk_status hbsdk_generate(hbsdk_context* context, const hbsdk_generate_params* params,
                                      hbsdk_image* images);

/* Free the pixels and set the image to zeros. Pixels that are not hbsdk's are refused. */
HBSDK_API hbsdk_status hbsdk_image_free(hbsdk_image* image);

#ifdef __cplusplus
}
#endif

#endif
