// The program `moe` of a bundle. It starts moe_tests, which has all of it within: kernels
// are most of what either weighs, and the bundle carries them once.

#include <unistd.h>

#include <climits>
#include <cstdio>
#include <string>
#include <vector>

int main(int, char** argv) {
    char self[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", self, sizeof self);
    std::string tests(self, length < 0 ? 0 : std::size_t(length));
    tests = tests.substr(0, tests.rfind('/') + 1) + "moe_tests";
    char as_moe[] = "--moe";
    std::vector<char*> words = {argv[0], as_moe};
    for (char** word = argv + 1; *word != nullptr; ++word) words.push_back(*word);
    words.push_back(nullptr);
    execv(tests.c_str(), words.data());
    std::fprintf(stderr, "moe: %s = cannot be started: it belongs beside this program\n",
                 tests.c_str());
    return 2;
}
