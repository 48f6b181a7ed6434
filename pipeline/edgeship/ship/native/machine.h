// What this machine is, from the kernel; empty or none where it does not say.
#pragma once

#include "failure.h"

#include <optional>
#include <string>
#include <vector>

// Instructions that engines have kernels for, by the kernel's own word for this process.
std::vector<std::string> features();

// Instructions that this build was compiled for and this processor lacks: the first of them would end the process.
std::vector<std::string> foreign();

// The matrix kernels of this build.
std::string kernels();

// Replaces this process by the build beside it that fits the processor best; returns where this one is it.
void become_best(char ** argv);

// Cores a process may use, without those that are slow beside the others: a phone's efficiency cores hold the rest up.
int good_cores();

std::string cpu_name();
std::optional<double> load_average();
std::optional<double> peak_rss_mb();

// The member `device` of the doctor's answer.
json board(const std::string & disk);
