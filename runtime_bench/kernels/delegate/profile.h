/* Times of each operator that a graph runs. Not for several threads, nor for several graphs at a time. */
#ifndef BGNN_PROFILE_H
#define BGNN_PROFILE_H

#include <stdint.h>

#include "tflite_abi.h"

/* A graph, and how to ask for its operators: the runtime shows these functions only while a delegate prepares. */
struct ProfiledGraph {
  TfLiteContext* context;
  TfLiteStatus (*plan)(TfLiteContext*, TfLiteIntArray**);
  TfLiteStatus (*node)(TfLiteContext*, int, TfLiteNode**, TfLiteRegistration**);
};

/* While the delegate prepares. */
void profile_see(ProfiledGraph* graph, TfLiteContext* context);

/* When the graph goes away, whose operators may be gone. */
void profile_forget(const ProfiledGraph* graph);

/* Times every operator from now on; how many there are, or -1 where another graph is timed, or there is none. */
int profile_start(const ProfiledGraph* graph);

/* Times nothing any more: another graph may be timed. */
void profile_stop(const ProfiledGraph* graph);

/* What an operator, by its place in the order that they run in, is: its number in the file, the name of a custom one or
 * a delegate, and the operators of the file that it stands for: how many, 0 for one that stands for itself, or -1. */
int profile_operator(const ProfiledGraph* graph, int place, int* number, const char** name, const int** replaced);

/* When each of the operators began (CLOCK_MONOTONIC) and how long it took in the last run, 0 where it did not run; how
 * many there are, or -1. */
int profile_read(const ProfiledGraph* graph, int64_t* start, int64_t* ns);

#endif
