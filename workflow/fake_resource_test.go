package workflow_test

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
)

// This file defines the resources of the fake server that are nothing but
// messages: what was posted, with an id.

type object = map[string]any

// A collection holds the resources of one kind, by what requests name them by.
type collection struct {
	path, noun, key string // "volumes", "volume"; what requests name them by
	answer          func(created object)
	shown           func(object) // as it is looked at
	all             map[string]object
}

func (f *fake) collections() []*collection {
	snapshots := &collection{path: "snapshots", noun: "snapshot", key: "id", all: map[string]object{},
		answer: func(o object) { o["status"] = "building" },
		shown:  func(o object) { o["status"] = "ready" },
	}
	f.snapshots = snapshots
	return []*collection{
		{path: "volumes", noun: "volume", key: "name", all: map[string]object{}, answer: func(o object) { o["storage_class"] = "standard" }},
		{path: "pools", noun: "pool", key: "name", all: map[string]object{}},
		{path: "registries", noun: "registry", key: "name", all: map[string]object{}, answer: func(o object) { delete(o, "username"); delete(o, "password") }},
		snapshots,
	}
}

// serve answers for the collection, as handle does for a pattern.
func (col *collection) serve(handle func(pattern string, h http.HandlerFunc)) {
	one := func(h func(http.ResponseWriter, *http.Request, object)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if o := col.all[r.PathValue("name")]; o != nil {
				h(w, r, o)
			} else {
				refuse(w, 404, "NotFound", "no "+col.noun+" "+r.PathValue("name"))
			}
		}
	}
	handle("POST /"+col.path, col.create)
	handle("GET /"+col.path, func(w http.ResponseWriter, r *http.Request) {
		list := slices.SortedFunc(maps.Values(col.all), func(a, b object) int { return cmp.Compare(a["name"].(string), b["name"].(string)) })
		answer(w, object{col.path: list})
	})
	handle("GET /"+col.path+"/{name}", one(func(w http.ResponseWriter, r *http.Request, o object) {
		if col.shown != nil {
			col.shown(o)
		}
		answer(w, o)
	}))
	handle("PATCH /"+col.path+"/{name}", one(func(w http.ResponseWriter, r *http.Request, o object) {
		delete(col.all, o[col.key].(string))
		json.NewDecoder(r.Body).Decode(&o)
		col.add(o)
		answer(w, o)
	}))
	handle("DELETE /"+col.path+"/{name}", one(func(w http.ResponseWriter, r *http.Request, o object) {
		delete(col.all, o[col.key].(string))
		w.WriteHeader(204)
	}))
}

func (col *collection) create(w http.ResponseWriter, r *http.Request) {
	var o object
	if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
		refuse(w, 400, "BadRequest", err.Error())
		return
	}
	delete(o, "wait_for_ready")
	delete(o, "timeout")
	o["id"] = "id-" + o["name"].(string)
	if col.all[o[col.key].(string)] != nil {
		refuse(w, 409, "Conflict", col.noun+" "+o["name"].(string)+" exists")
		return
	}
	col.add(o)
	answer(w, o)
}

func (col *collection) add(o object) {
	if col.answer != nil {
		col.answer(o)
	}
	col.all[o[col.key].(string)] = o
}
