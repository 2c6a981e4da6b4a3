"""Five short texts of different kinds, written for this project, on which tokenizers are compared."""

NEWS = """\
The city council voted 31 to 14 on Tuesday night to close the riverside road to cars for the whole of next summer, ending a dispute \
that has divided the town of Halvorsund since the spring of 2019. From June 1, the two-kilometre stretch between the old customs house \
and the ferry terminal will belong to pedestrians, cyclists and the number 6 tram.

"We have counted 4,200 vehicles a day on a road that was built for horse carts," said Deputy Mayor Ingrid Solheim after the vote. "Nobody \
who lives there has opened a window in August for twenty years." The plan will cost about $3.8 million, most of which has already been \
set aside in this year's budget.

Shop owners were less convinced. Around sixty of them had gathered outside the town hall, some carrying signs that read "No cars, no \
customers". Peter Aune, who sells fishing tackle near the terminal, said that he expected to lose a third of his trade. "People don't \
carry an outboard motor home on the tram," he told reporters. An economist at the regional university disagreed: in comparable towns, she \
said, retail sales had fallen by 2 to 5 percent in the first year and recovered in the second.

The decision can still be challenged in court until the end of the month. If it stands, the council wants to publish the figures for \
noise, air quality and trade every quarter, and to vote again in October 2027.
"""

KOREAN = """\
지난 화요일 밤, 시의회는 내년 여름 동안 강변도로의 차량 통행을 전면 금지하기로 결정했다. 찬성 31표, 반대 14표였다. 6월 1일부터 옛 세관 건물에서 \
여객선 터미널까지 이어지는 2킬로미터 구간은 보행자와 자전거, 그리고 6번 전차만 이용할 수 있게 된다.

부시장은 표결이 끝난 뒤 "마차를 위해 만든 길에 하루 4,200대의 차가 다니고 있다"고 말했다. 반면 상인들은 손님이 줄어들 것이라며 걱정했다. \
터미널 근처에서 낚시 용품을 파는 한 주민은 매출이 삼분의 일쯤 줄 것으로 예상했다. 그러나 지역 대학의 한 경제학자는 비슷한 도시의 경우 첫해에는 \
판매가 조금 줄었지만 이듬해에는 회복되었다고 설명했다.

이번 결정에 대해서는 이달 말까지 소송을 제기할 수 있다.
"""

CODE = '''\
from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Graph:
    """A weighted, directed graph kept as adjacency lists."""

    edges: dict[str, list[tuple[str, float]]] = field(default_factory=lambda: defaultdict(list))

    def connect(self, source: str, target: str, weight: float = 1.0) -> None:
        if weight < 0:
            raise ValueError(f"weight={weight}: must not be negative")
        self.edges[source].append((target, weight))

    def distances(self, start: str) -> dict[str, float]:
        """Shortest distance from `start` to every node that can be reached (Dijkstra)."""
        best = {start: 0.0}
        queue = [(0.0, start)]
        while queue:
            distance, node = heapq.heappop(queue)
            if distance > best[node]:
                continue  # an older, longer way to a node that is settled
            for neighbour, weight in self.edges[node]:
                candidate = distance + weight
                if candidate < best.get(neighbour, float("inf")):
                    best[neighbour] = candidate
                    heapq.heappush(queue, (candidate, neighbour))
        return best


if __name__ == "__main__":
    graph = Graph()
    for a, b, w in [("A", "B", 4), ("A", "C", 1), ("C", "B", 2), ("B", "D", 5)]:
        graph.connect(a, b, w)
    print(graph.distances("A"))  # {'A': 0.0, 'C': 1.0, 'B': 3.0, 'D': 8.0}
'''

MATH = r"""\documentclass{article}
\usepackage{amsmath,amsthm}
\newtheorem{lemma}{Lemma}
\begin{document}

\begin{lemma}
For every integer $n \ge 1$,
\[ \sum_{k=1}^{n} k^3 = \Bigl( \frac{n(n+1)}{2} \Bigr)^{2}. \]
\end{lemma}

\begin{proof}
We argue by induction on $n$. For $n = 1$ both sides equal $1$. Suppose that the claim holds for $n$. Then
\begin{align*}
\sum_{k=1}^{n+1} k^3 &= \frac{n^2 (n+1)^2}{4} + (n+1)^3 \\
                     &= \frac{(n+1)^2}{4} \bigl( n^2 + 4n + 4 \bigr) \\
                     &= \frac{(n+1)^2 (n+2)^2}{4},
\end{align*}
which is the claim for $n + 1$.
\end{proof}

Let $f \colon [a,b] \to \mathbf{R}$ be continuous and $F(x) = \int_a^x f(t)\,dt$. For $h \neq 0$,
\[ \left| \frac{F(x+h) - F(x)}{h} - f(x) \right| = \left| \frac{1}{h} \int_x^{x+h} \bigl( f(t) - f(x) \bigr)\,dt \right|
   \le \sup_{|t-x| \le |h|} |f(t) - f(x)| \xrightarrow[h \to 0]{} 0, \]
hence $F' = f$ on $(a,b)$. In particular $\int_0^{\pi} \sin t\,dt = 2$ and $\int_0^1 x^{2026}\,dx = \tfrac{1}{2027} \approx 4.933 \times 10^{-4}$.

\end{document}
"""

SCIENCE = """\
Photosynthesis converts the energy of sunlight into chemical energy that plants, algae and cyanobacteria can store. In the thylakoid \
membranes of the chloroplast, pigments such as chlorophyll absorb photons and pass the excitation on to a reaction centre, where an \
electron is lifted to a higher energy level. As this electron travels along a chain of proteins, protons are pumped across the membrane, and \
the resulting gradient drives the synthesis of ATP. The electrons that are lost are replaced by splitting water, which releases oxygen as a \
by-product.

The second stage, known as the Calvin cycle, takes place in the stroma and does not need light directly. There, the enzyme RuBisCO attaches \
carbon dioxide to a five-carbon sugar; the product is reduced with the help of ATP and NADPH, and after several turns of the cycle a molecule \
of glucose can be assembled. RuBisCO is slow, fixing only three to ten molecules per second, and it sometimes mistakes oxygen for carbon \
dioxide. Plants of hot, dry regions, such as maize and sugar cane, have evolved mechanisms that concentrate carbon dioxide around the enzyme \
and so reduce this wasteful photorespiration.

Temperature, light intensity and the concentration of carbon dioxide each limit the rate of photosynthesis. When one of them is scarce, \
increasing the others has little effect: a principle that growers make use of when they enrich the air of greenhouses.
"""

SAMPLE_TEXTS = {"news": NEWS, "korean": KOREAN, "code": CODE, "math": MATH, "science": SCIENCE}
