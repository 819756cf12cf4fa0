package server

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// This file defines how lists are sorted and cut: by limit and offset
// (protocol.md §2.5, §2.10), or by page_size and cursor (§16.12).

const (
	defaultPage = 50
	maxPage     = 500
)

// listing says how a list of one kind is answered.
type listing[T any] struct {
	field string // of the list, beside "items"
	whole int    // items without page_size, cursor and limit; 0 is all
	page  int    // items with cursor and without page_size
	most  int    // page_size, and limit if whole is not 0
	keys  map[string]func(T) string
	id    func(T) string
}

// position is what a cursor says: where the page before ended. It stays good when
// items come and go.
type position struct {
	Key string `json:"k"`
	ID  string `json:"i"`
}

// answer sorts what was found, the newest first if nothing else is asked for, and
// by id where that leaves a choice; and cuts out what the query asks for. The list
// has two names, as clients of different age read it.
func (l listing[T]) answer(query url.Values, found []T) (int, any, error) {
	by := cmp.Or(query.Get("sort_by"), "created_at")
	key, ok := l.keys[by]
	if !ok {
		return 0, nil, invalid("query.sort_by", "want one of %s", strings.Join(slices.Sorted(maps.Keys(l.keys)), ", "))
	}
	asked := "sort_direction"
	if query.Has("sort_order") {
		asked = "sort_order"
	}
	sign, ok := map[string]int{"": -1, "desc": -1, "asc": 1}[query.Get(asked)]
	if !ok {
		return 0, nil, invalid("query."+asked, "want asc or desc")
	}
	at := func(item T) position { return position{key(item), l.id(item)} }
	compare := func(a, b position) int { return sign * cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.ID, b.ID)) }
	slices.SortFunc(found, func(a, b T) int { return compare(at(a), at(b)) })

	if cursor := query.Get("cursor"); cursor != "" {
		var after position
		text, err := base64.RawURLEncoding.DecodeString(cursor)
		if err != nil || json.Unmarshal(text, &after) != nil {
			return 0, nil, invalid("query.cursor", "want the next_cursor of the page before")
		}
		i, _ := slices.BinarySearchFunc(found, after, func(item T, p position) int { return compare(at(item), p) })
		for i < len(found) && compare(at(found[i]), after) == 0 {
			i++
		}
		found = found[i:]
	}
	offset, err := number(query, "offset", 0, 0, 0)
	if err != nil {
		return 0, nil, err
	}
	size, err := l.size(query)
	if err != nil {
		return 0, nil, err
	}
	found = found[min(offset, len(found)):]
	var next *string
	if size > 0 && size < len(found) {
		text, err := json.Marshal(at(found[size-1]))
		if err != nil {
			return 0, nil, err
		}
		cursor := base64.RawURLEncoding.EncodeToString(text)
		found, next = found[:size], &cursor
	}
	items, err := json.Marshal(append([]T{}, found...))
	list := json.RawMessage(items)
	return http.StatusOK, map[string]any{l.field: list, "items": list, "offset": offset, "next_cursor": next}, err
}

// size is how many items are asked for; 0 is all.
func (l listing[T]) size(query url.Values) (int, error) {
	if query.Has("page_size") || query.Has("cursor") {
		return number(query, "page_size", l.page, 1, l.most)
	}
	if l.whole > 0 {
		return number(query, "limit", l.whole, 1, l.most)
	}
	return number(query, "limit", 0, 1, 0)
}

// number reads an integer of a query; a most of 0 is no bound.
func number(query url.Values, name string, fallback, least, most int) (int, error) {
	text := query.Get(name)
	if text == "" {
		return fallback, nil
	}
	n, err := strconv.Atoi(text)
	switch {
	case most == 0 && (err != nil || n < least):
		return 0, invalid("query."+name, "want an integer from %d", least)
	case most > 0 && (err != nil || n < least || n > most):
		return 0, invalid("query."+name, "want an integer from %d to %d", least, most)
	}
	return n, nil
}

// page cuts out what limit and offset ask for of a list of the older generations;
// without a limit it is all.
func page[T any](query url.Values, all []T) ([]T, error) {
	limit, err := number(query, "limit", len(all), 1, 0)
	if err != nil {
		return nil, err
	}
	offset, err := number(query, "offset", 0, 0, 0)
	if err != nil {
		return nil, err
	}
	rest := all[min(offset, len(all)):]
	return rest[:min(limit, len(rest))], nil
}
