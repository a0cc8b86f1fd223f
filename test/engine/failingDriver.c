/*
 * A Vulkan driver that fails: it hands every call on to the driver FAILING_DRIVER, but the one named FAILING_CALL
 * answers FAILING_RESULT from its call number FAILING_AFTER on. For calls with at most six arguments.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef void (*Function)(void);
typedef Function (*Lookup)(void *, const char *);
typedef int32_t (*Call)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);

static Lookup instanceLookup;
static Lookup deviceLookup;
static Call call;
static long calls;

static int32_t failing(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f) {
  return calls++ < atol(getenv("FAILING_AFTER")) ? call(a, b, c, d, e, f) : atoi(getenv("FAILING_RESULT"));
}

static Function replaced(Function found, const char *name);

static Function lookUpOfDevice(void *device, const char *name) {
  return replaced(deviceLookup(device, name), name);
}

static Function replaced(Function found, const char *name) {
  if (found && !strcmp(name, getenv("FAILING_CALL"))) {
    call = (Call)found;
    return (Function)failing;
  }
  if (found && !strcmp(name, "vkGetDeviceProcAddr")) {
    deviceLookup = (Lookup)found;
    return (Function)lookUpOfDevice;
  }
  return found;
}

Function vk_icdGetInstanceProcAddr(void *instance, const char *name) {
  if (!instanceLookup) {
    void *driver = dlopen(getenv("FAILING_DRIVER"), RTLD_NOW);
    if (!driver) abort();
    instanceLookup = (Lookup)dlsym(driver, "vk_icdGetInstanceProcAddr");
  }
  return replaced(instanceLookup(instance, name), name);
}

int32_t vk_icdNegotiateLoaderICDInterfaceVersion(uint32_t *version) {
  if (*version > 3) *version = 3;
  return 0;
}
