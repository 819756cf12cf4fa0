package builtins

import "testing"

func TestResultsAreDocumented(t *testing.T) {
	for function, value := range results {
		if Signature(function) == nil || Signature(value) == nil {
			t.Errorf("%s returns %s, and one of them has no stub", function, value)
		}
		if len(ValueMembers(value)) == 0 {
			t.Errorf("the value %s has no members", value)
		}
	}
}
