package builtins

import "strings"

// This file defines what is suggested in place of a name that is not there.

// nearest returns the candidate that name was probably meant to be, or "". Of
// two that are as near it is the longer: letters are rather left out than added.
func nearest(name string, candidates []string) string {
	best, bestDistance := "", (len(name)+1)/2 // half of it may be wrong
	for _, c := range candidates {
		if d := distance(fold(name), fold(c)); d < bestDistance || d == bestDistance && len(c) > len(best) && best != "" {
			best, bestDistance = c, d
		}
	}
	return best
}

// fold makes names equal that differ in case, dashes and underscores only.
func fold(s string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(s))
}

// distance is the number of bytes to insert, delete, replace or swap with their
// neighbour to make b of a.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			replace := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			rows[i][j] = min(replace, rows[i-1][j]+1, rows[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

// DidYouMean is what a message about a name that is not there ends with if one
// of the candidates is near. They are written with the prefix.
func DidYouMean(prefix, name string, candidates []string) string {
	if n := nearest(name, candidates); n != "" {
		return "; did you mean " + prefix + n + "?"
	}
	return ""
}
