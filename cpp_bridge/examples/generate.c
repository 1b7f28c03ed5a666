/* Draws one picture of a subject: generate-c ENGINES SUBJECT PROMPT OUT.ppm */
#include <hbsdk.h>
#include <stdio.h>

static int on_step(int32_t step, int32_t num_inference_steps, void* user_data) {
    (void)user_data;
    fprintf(stderr, "\r%d of %d steps", step, num_inference_steps);
    return 0; /* go on */
}

static int write_ppm(const char* path, const hbsdk_image* image) {
    const size_t size = (size_t)image->width * (size_t)image->height * 3;
    FILE* file = fopen(path, "wb");
    if (file == NULL) return 0;
    fprintf(file, "P6\n%d %d\n255\n", image->width, image->height);
    const int written = fwrite(image->pixels, 1, size, file) == size;
    return fclose(file) == 0 && written;
}

static int failed(const char* what) {
    fprintf(stderr, "%s: %s\n", what, hbsdk_last_error());
    return 1;
}

static int draw(hbsdk_context* context, hbsdk_subject* subject, char** arguments) {
    const hbsdk_subject* subjects[] = {subject};
    hbsdk_generate_params params;
    if (hbsdk_generate_params_init(&params, sizeof params) != HBSDK_OK) return failed("params");
    params.prompt = arguments[3];
    params.subjects = subjects;
    params.num_subjects = 1;
    params.seed = 7;
    params.on_step = on_step;
    hbsdk_image image = {0};
    if (hbsdk_generate(context, &params, &image) != HBSDK_OK) return failed("drawing");
    const int written = write_ppm(arguments[4], &image);
    hbsdk_image_free(&image);
    if (!written) fprintf(stderr, "cannot write %s\n", arguments[4]);
    return written ? 0 : 1;
}

int main(int count, char** arguments) {
    if (count != 5) {
        fprintf(stderr, "usage: %s ENGINES SUBJECT.safetensors PROMPT OUT.ppm\n", arguments[0]);
        return 2;
    }
    if (hbsdk_abi_version() != HBSDK_ABI_VERSION) {
        fprintf(stderr, "the library's ABI is %u\n", (unsigned)hbsdk_abi_version());
        return 1;
    }
    hbsdk_open_params params;
    if (hbsdk_open_params_init(&params, sizeof params) != HBSDK_OK) return failed("params");
    params.engine_folder = arguments[1];
    hbsdk_context* context = NULL;
    if (hbsdk_open(&params, &context) != HBSDK_OK) return failed("engines");
    hbsdk_subject* subject = NULL;
    int result = 1;
    if (hbsdk_subject_load(context, arguments[2], &subject) != HBSDK_OK) {
        failed("subject");
    } else {
        result = draw(context, subject, arguments);
    }
    hbsdk_subject_free(subject);
    hbsdk_close(context);
    return result;
}
