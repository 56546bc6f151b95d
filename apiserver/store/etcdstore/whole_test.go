package etcdstore

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// Of many revisions the newest of each key stays, whenever the others are dropped.
func TestNewest(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 100 {
		var pairs []pair
		want := map[string]string{}
		for i := range random.IntN(300) {
			key, value := fmt.Sprint(random.IntN(40)), fmt.Sprint(i)
			want[key] = value
			pairs = append(pairs, pair{key: key, n: len(pairs), value: []byte(value)})
			if random.IntN(50) == 0 {
				pairs = newest(pairs)
			}
		}
		pairs = newest(pairs)
		if len(pairs) != len(want) {
			t.Fatalf("%d of %d keys", len(pairs), len(want))
		}
		for i, p := range pairs {
			if string(p.value) != want[p.key] || i > 0 && pairs[i-1].key >= p.key {
				t.Fatalf("%s is %s, want %s; before it is %v", p.key, p.value, want[p.key], pairs[max(i-1, 0)])
			}
		}
	}
}
