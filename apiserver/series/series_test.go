package series

import "testing"

func TestKeptIsMadeOnce(t *testing.T) {
	var k Kept[string, *int]
	made := 0
	of := func(string) *int { made++; return new(int) }
	a := k.Of("a", of)
	if k.Of("a", of) != a || made != 1 {
		t.Errorf("made %d times for one key", made)
	}
	if k.Of("b", of) == a {
		t.Error("two keys have one value")
	}
}
